# Completions of the tuned model for the task's targets and held-out prompts.


rule sample:
    input:
        model="results/runs/{run}/merged/manifest.json",
        text=text_of_run,
        script=script("sample"),
        modules=modules("sample"),
    output:
        samples="results/runs/{run}/samples.parquet",
        manifest="results/runs/{run}/samples.manifest.json",
    log:
        "logs/sample/{run}.log",
    container:
        IMAGES["train"]
    threads: lambda wildcards: run(wildcards).sample.threads
    resources:
        nodes=1,
        gpu=gpu,
        mem_mb=more_on_retry(8000),
        runtime=240,
    params:
        model=subpath(input.model, parent=True),
        text=lambda wildcards, input: folders(input.text),
        task=lambda wildcards: CONFIG.datasets[run(wildcards).dataset].task,
        max_length=lambda wildcards: run(wildcards).plan.max_length,
        options=lambda wildcards: options(
            sample=run(wildcards).sample,
            pretokenize=CONFIG.datasets[run(wildcards).dataset].pretokenize,
        ),
    shell:
        "python {input.script} --model {params.model} --text {params.text} --task {params.task} --work work/{wildcards.run}/samples --output {output.samples} --max-length {params.max_length} {params.options} 2>&1 | tee {log}"
