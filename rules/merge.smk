# The adapter added onto the base weights: a model folder like any other.


rule merge:
    input:
        model=model_of_run,
        adapter="results/runs/{run}/adapter/manifest.json",
        tokens=tokens_of_run,
        script=script("merge"),
        modules=modules("merge"),
    output:
        "results/runs/{run}/merged/manifest.json",
    log:
        "logs/merge/{run}.log",
    container:
        IMAGES["train"]
    threads: lambda wildcards: run(wildcards).merge.threads
    resources:
        nodes=1,
        gpu=gpu,
        mem_mb=merging_mb,
        runtime=60,
    params:
        model=subpath(input.model, parent=True),
        adapter=subpath(input.adapter, parent=True),
        tokens=lambda wildcards, input: folders(input.tokens),
        max_length=lambda wildcards: run(wildcards).plan.max_length,
        options=lambda wildcards: options(merge=run(wildcards).merge),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} --model {params.model} --adapter {params.adapter} --tokens {params.tokens} --output {params.output} --max-length {params.max_length} {params.options} 2>&1 | tee {log}"
