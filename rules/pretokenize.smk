# Text to the base model's token ids.


rule pretokenize:
    input:
        text="results/datasets/{dataset}/text/{shard}/manifest.json",
        model="results/models/{model}/manifest.json",
        script=script("pretokenize"),
        modules=modules("pretokenize"),
    output:
        "results/datasets/{dataset}/tokens/{model}/{shard}/manifest.json",
    log:
        "logs/pretokenize/{dataset}/{model}/{shard}.log",
    group:
        "data"
    container:
        IMAGES["data"]
    resources:
        shards_at_once=1,
        mem_mb=more_on_retry(2000),
        runtime=60,
    params:
        text=subpath(input.text, parent=True),
        model=subpath(input.model, parent=True),
        options=lambda wildcards: options(pretokenize=dataset(wildcards).pretokenize),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} --text {params.text} --model {params.model} --output {params.output} {params.options} 2>&1 | tee {log}"
