# Downloaded or generated files to text.


rule detokenize:
    input:
        raw="results/datasets/{dataset}/raw/{shard}/manifest.json",
        vocabulary=lambda wildcards: str(vocabulary.path_of(dataset(wildcards).detokenize.vocabulary)),
        script=script("detokenize"),
        modules=modules("detokenize"),
    output:
        "results/datasets/{dataset}/text/{shard}/manifest.json",
    log:
        "logs/detokenize/{dataset}/{shard}.log",
    group:
        "data"
    container:
        IMAGES["data"]
    resources:
        shards_at_once=1,
        mem_mb=more_on_retry(1000),
        runtime=60,
    params:
        raw=subpath(input.raw, parent=True),
        options=lambda wildcards: options(detokenize=dataset(wildcards).detokenize),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} --raw {params.raw} --output {params.output} {params.options} 2>&1 | tee {log}"
