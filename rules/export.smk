# The merged model as a GGUF file, for llama.cpp; only for runs that name a type.


rule export:
    input:
        model="results/runs/{run}/merged/manifest.json",
        script=script("export"),
        modules=modules("export"),
    output:
        "results/runs/{run}/gguf/manifest.json",
    log:
        "logs/export/{run}.log",
    wildcard_constraints:
        run=one_of(EXPORTED),
    container:
        IMAGES["gguf"]
    resources:
        nodes=1,
        mem_mb=more_on_retry(8000),
        runtime=120,
    params:
        model=subpath(input.model, parent=True),
        options=lambda wildcards: options(gguf=run(wildcards).gguf),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} --model {params.model} --name {wildcards.run} --output {params.output} {params.options} 2>&1 | tee {log}"
