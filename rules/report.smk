# One HTML page for all runs.


rule report:
    input:
        evaluations=expand("results/runs/{run}/evaluation.manifest.json", run=CONFIG.runs),
        harness=expand("results/runs/{run}/harness.manifest.json", run=HARNESSED),
        script=script("report"),
        modules=modules("report"),
        template=repository_file("report/report.html.j2"),
        style=repository_file("report/report.css"),
    output:
        page="results/report.html",
        manifest="results/report.manifest.json",
    log:
        "logs/report.log",
    container:
        IMAGES["data"]
    resources:
        mem_mb=more_on_retry(2000),
        runtime=30,
    params:
        runs=expand("results/runs/{run}", run=CONFIG.runs),
    shell:
        "python {input.script} --runs {params.runs} --output {output.page} 2>&1 | tee {log}"
