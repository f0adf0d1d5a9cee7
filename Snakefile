# corax: fine-tune language models with QLoRA, from configuration to report.
#
#     snakemake --cores 2                                         the default configuration, config.yaml
#     snakemake --cores 2 --configfile my.yaml                    another one
#     snakemake --cores 2 results/runs/demo/plan/manifest.json    one artifact and what it needs

from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/download.smk"
include: "rules/generate.smk"
include: "rules/detokenize.smk"
include: "rules/pretokenize.smk"
include: "rules/plan.smk"
include: "rules/train.smk"
include: "rules/merge.smk"
include: "rules/sample.smk"
include: "rules/evaluate.smk"
include: "rules/harness.smk"
include: "rules/export.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        "results/report.html",
        artifacts(),
