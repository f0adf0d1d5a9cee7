# Simulated quantum experiments as HDF5 token ids.
#
# On a cluster generate, detokenize and pretokenize of a shard are one job, the group "data": docs/scale.md.


GENERATED = [name for name, each in CONFIG.datasets.items() if each.generate]


rule generate:
    input:
        script=script("generate"),
        modules=modules("generate"),
    output:
        "results/datasets/{dataset}/raw/{shard}/manifest.json",
    log:
        "logs/generate/{dataset}/{shard}.log",
    wildcard_constraints:
        dataset=one_of(GENERATED),
    group:
        "data"
    container:
        IMAGES["data"]
    resources:
        shards_at_once=1,
        mem_mb=more_on_retry(1000),
        runtime=120,
    params:
        options=lambda wildcards: options(generate=dataset(wildcards).generate),
        shards=lambda wildcards: dataset(wildcards).shards,
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} --shard {wildcards.shard} --shards {params.shards} --output {params.output} {params.options} 2>&1 | tee {log}"
