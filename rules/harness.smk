# lm-evaluation-harness on local task files, base against tuned; only for runs that name some.


rule harness:
    input:
        task_files,
        base=model_of_run,
        tuned="results/runs/{run}/merged/manifest.json",
        script=script("harness"),
        modules=modules("harness"),
    output:
        harness="results/runs/{run}/harness.json",
        manifest="results/runs/{run}/harness.manifest.json",
    log:
        "logs/harness/{run}.log",
    wildcard_constraints:
        run=one_of(HARNESSED),
    container:
        IMAGES["harness"]
    threads: lambda wildcards: run(wildcards).harness.threads
    resources:
        nodes=1,
        gpu=gpu,
        mem_mb=more_on_retry(8000),
        runtime=240,
    params:
        base=subpath(input.base, parent=True),
        tuned=subpath(input.tuned, parent=True),
        options=lambda wildcards: options(harness=run(wildcards).harness),
    shell:
        "python {input.script} --base {params.base} --tuned {params.tuned} --output {output.harness} {params.options} 2>&1 | tee {log}"
