# Base against tuned model on the test part, and the task's own metrics on the samples.


rule evaluate:
    input:
        base=model_of_run,
        tuned="results/runs/{run}/merged/manifest.json",
        tokens=tokens_of_run,
        samples="results/runs/{run}/samples.parquet",
        manifest="results/runs/{run}/samples.manifest.json",
        script=script("evaluate"),
        modules=modules("evaluate"),
    output:
        evaluation="results/runs/{run}/evaluation.json",
        manifest="results/runs/{run}/evaluation.manifest.json",
    log:
        "logs/evaluate/{run}.log",
    container:
        IMAGES["train"]
    threads: lambda wildcards: run(wildcards).evaluate.threads
    resources:
        nodes=1,
        gpu=gpu,
        mem_mb=more_on_retry(8000),
        runtime=240,
    params:
        base=subpath(input.base, parent=True),
        tuned=subpath(input.tuned, parent=True),
        tokens=lambda wildcards, input: folders(input.tokens),
        task=lambda wildcards: CONFIG.datasets[run(wildcards).dataset].task,
        max_length=lambda wildcards: run(wildcards).plan.max_length,
        options=lambda wildcards: options(evaluate=run(wildcards).evaluate),
    shell:
        "python {input.script} --base {params.base} --tuned {params.tuned} --tokens {params.tokens} --samples {input.samples} --task {params.task} --output {output.evaluation} --max-length {params.max_length} {params.options} 2>&1 | tee {log}"
