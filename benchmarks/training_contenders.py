"""What benchmarks/training.py compares with: transformers and peft as their documentation has it, Unsloth and TRL."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from training_bench import Bench, Clock
from training_model import fill, labels, lora, random_model, reset_adapter, write_tokenizer, write_zeros
from transformers import AutoTokenizer, TrainerCallback

from corax.model import load_quantised
from corax.train.adapter import add_adapter
from corax.train.packs import Batch

CHECKPOINTING = {"use_reentrant": False}


def usual(bench: Bench) -> None:
    """transformers and peft as their documentation has it: kbit preparation, SDPA, checkpointing, dropout 0.05."""
    model = random_model(bench.shape, bench.device, dropout=0.05)
    prepared = prepare_model_for_kbit_training(model.get_base_model(), gradient_checkpointing_kwargs=CHECKPOINTING)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    prepared.train()

    def loss_sum(batch: Batch, packed: bool) -> torch.Tensor:
        moved = batch.to(bench.device)
        options = {"position_ids": moved.position_ids} if packed else {}
        with torch.autocast(bench.device.type, dtype=bench.dtype, enabled=bench.gpu):
            loss: torch.Tensor = model(input_ids=moved.input_ids, labels=labels(moved), use_cache=False, **options).loss
        return loss * len(batch.targets)

    settings = "prepare_model_for_kbit_training, SDPA, checkpointing, dropout 0.05"
    for packed, name in ((False, "usual script"), (True, "usual script, samples kept apart")):
        work = partial(bench.time, name, settings, model, lambda batch, _, packed=packed: loss_sum(batch, packed))
        bench.attempt(name, work)


def unsloth(bench: Bench) -> None:
    """Unsloth with its own checkpointing, dropout 0, on whole packs."""
    from unsloth import FastLanguageModel

    with TemporaryDirectory() as name:
        folder = Path(name)
        write_zeros(bench.shape, folder)
        write_tokenizer(folder)
        model, _ = FastLanguageModel.from_pretrained(
            name, max_seq_length=bench.shape.pack, dtype=bench.dtype, load_in_4bit=True, local_files_only=True
        )
    fill(model, bench.device)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model,
        r=bench.shape.r,
        lora_alpha=2 * bench.shape.r,
        lora_dropout=0,
        target_modules=linears,
        use_gradient_checkpointing="unsloth",
        max_seq_length=bench.shape.pack,
    )
    FastLanguageModel.for_training(model)

    def loss_sum(batch: Batch, seed: int) -> torch.Tensor:
        moved = batch.to(bench.device)
        lengths = (batch.position_ids[0] == 0).nonzero()[:, 0].diff(append=torch.tensor([batch.input_ids.numel()]))
        with torch.autocast("cuda", dtype=bench.dtype):
            loss: torch.Tensor = model(
                input_ids=moved.input_ids,
                position_ids=moved.position_ids,
                packed_seq_lengths=lengths.to(torch.int32).to(bench.device),
                labels=labels(moved),
            ).loss
        return loss * len(batch.targets)

    bench.attempt("Unsloth", lambda: bench.time("Unsloth", "its own checkpointing, packed", model, loss_sum))


def trl(bench: Bench) -> None:
    """TRL's SFTTrainer on whole packs, with checkpointing and dropout 0.05, timed by a callback; it needs a GPU."""
    with TemporaryDirectory() as name:
        _trl(bench, Path(name))


def _trl(bench: Bench, folder: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    write_zeros(bench.shape, folder)
    write_tokenizer(folder)
    base = load_quantised(folder, bench.dtype, bench.device)
    fill(base, bench.device)
    model = add_adapter(base, lora(bench.shape, dropout=0.05), seed=0)
    reset_adapter(model)
    rows = [{"input_ids": each.input_ids[0].tolist(), "labels": labels(each)[0].tolist()} for each in bench.chosen()]
    clock = Clock(bench.gpu)
    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=len(rows),
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs=CHECKPOINTING,
        bf16=bench.gpu,
        use_cpu=not bench.gpu,
        learning_rate=1e-4,
        max_length=bench.shape.pack,
        logging_first_step=True,
        logging_steps=len(rows),
        save_strategy="no",
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(Watch())
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        trainer.train()
        bench.report(
            name="TRL",
            settings="SFTTrainer, SDPA, checkpointing, dropout 0.05",
            tokens_per_second=bench.tokens_per_second(clock),
            peak_gb=bench.peak(),
            first_loss=losses[0],
        )

    bench.attempt("TRL", run)
