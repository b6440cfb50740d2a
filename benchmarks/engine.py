"""What the generation engine costs beside a bare loop that calls the same pipeline.

    OMP_NUM_THREADS=1 python benchmarks/engine.py [--model phantom-diffusion] [--set steps=10]
        [--prompts 40] [--turns 7] [--batch-size 8] [--write]

The bare loop passes the same prompts in the same batches, with a generator a request, and keeps no
image; the engine also checks, encodes, hashes and writes each one, notes it in the manifest and
looks for duplicates. Each side has a freshly loaded model (not timed) in each turn, so that nothing
is known from the turn before; sides alternate, and who begins alternates too. Processor time is
that of all threads, the writer's included: on a busy machine it is the fairer of the two. Once
every prompt has one seed, once ten. What the engine does once, before it asks for the model (it
reads the folder and collects what earlier models left), is in its time, and has a column of its own
as well. ``--tiny FAMILY`` takes a random pipeline of the tests
(``sd-v1-5``, ``sana`` ...), which is so small that all the rest shows. ``--small-sana`` takes a
random Sana of the published depths and a tenth of the published widths, so that its parts weigh
against each other about as the real ones do. ``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Cost, machine, spread, table, write_between

from chexgenbench.generation import seed_of
from chexgenbench.jobs.generate import generate, hold
from chexgenbench.registry import Plugin, load_registry
from chexgenbench.splits.csv_file import read_csv
from chexgenbench.types import Context, Request
from chexgenbench_plugins.pipelines import native_size

DEMO = ROOT / "MIMIC_Splits" / "demo" / "DEMO_ANNOTATIONS_TEST.csv"


def make_requests(prompts: int, seeds: int) -> list[Request]:
    texts = list(dict.fromkeys(read_csv(DEMO)["annotated_prompt"]))[:prompts]
    return [
        Request(id=f"r{i}-{k}", prompt_id=f"r{i}", prompt=text, seed=seed_of(0, f"r{i}", k))
        for i, text in enumerate(texts)
        for k in range(seeds)
    ]


def small_sana(folder: Path) -> dict[str, Any]:
    """Sana 0.6B at a tenth of its widths (https://arxiv.org/abs/2410.10629), 512 x 512: a hundredth
    of the parameters of the transformer and of Gemma 2 2B, and the autoencoder's levels."""
    import torch
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )
    from transformers import Gemma2Config, Gemma2Model

    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import gemma_tokenizer

    torch.manual_seed(0)
    tokenizer = gemma_tokenizer()
    widths = (16, 32, 64, 64, 128, 128)
    vae = AutoencoderDC(
        latent_channels=32,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(3,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=14,
        attention_head_dim=8,
        num_layers=28,
        num_cross_attention_heads=7,
        cross_attention_head_dim=16,
        cross_attention_dim=112,
        caption_channels=224,
        sample_size=16,
    )
    text = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=224,
            intermediate_size=896,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)
    return {"weights": str(folder), "use_resolution_binning": False}


def bare(model: Any, requests: Sequence[Request], batch_size: int) -> float:
    import torch

    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        call = dict(model.call)
        if isinstance(call.get("negative_prompt"), str):
            call["negative_prompt"] = [call["negative_prompt"]] * len(batch)
        size = model.parameters.size or native_size(model.pipeline)
        with torch.inference_mode():
            model.pipeline(
                prompt=[request.prompt for request in batch],
                **call,
                **({"height": size, "width": size} if size else {}),
                generator=[torch.Generator("cpu").manual_seed(each.seed) for each in batch],
                output_type="np",
            )
    return 0.0


def engine(model: Any, requests: Sequence[Request], batch_size: int) -> float:
    """Processor seconds until the model was asked for."""
    begun, before = time.process_time(), 0.0

    def load() -> Any:
        nonlocal before
        before = time.process_time() - begun
        return model

    with tempfile.TemporaryDirectory() as folder, hold(Path(folder)):
        generate(load, requests, Path(folder), batch_size=batch_size, advance=lambda _count: None)
    return before


def turns(
    load: Callable[[], Any], requests: Sequence[Request], batch_size: int, count: int
) -> tuple[dict[str, list[Cost]], list[float]]:
    """What each side took in each turn, and what `engine` returned in each."""
    sides = {"bare loop": bare, "engine": engine}
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    before: list[float] = []
    for turn in range(count):
        for name in sorted(sides, reverse=bool(turn % 2)):
            model = load()
            sides[name](model, requests[:1], 1)  # what is done once only, at a first call
            model = load()
            begun, worked = time.perf_counter(), time.process_time()
            once = sides[name](model, requests, batch_size)
            costs[name].append(Cost(time.perf_counter() - begun, time.process_time() - worked))
            if name == "engine":
                before.append(once)
        print({name: values[-1] for name, values in costs.items()}, file=sys.stderr, flush=True)
    return costs, before


def ratio(costs: dict[str, list[Cost]], kind: str) -> str:
    """Least, median and largest of the engine's part of the bare loop's, turn by turn."""
    pairs = zip(costs["engine"], costs["bare loop"], strict=True)
    found = [getattr(mine, kind) / getattr(other, kind) for mine, other in pairs]
    return f"{min(found):.3f} / {statistics.median(found):.3f} / {max(found):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="phantom-diffusion")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--tiny", metavar="FAMILY")
    parser.add_argument("--small-sana", action="store_true")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()

    values: dict[str, Any] = dict(text.split("=", 1) for text in options.set)
    name = "sana" if options.small_sana else options.tiny or options.model
    kind = "small " if options.small_sana else "tiny " if options.tiny else ""
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            sys.path.insert(0, str(ROOT / "tests"))
            from tiny import FAMILIES

            values = dict(FAMILIES[options.tiny](Path(folder))) | values
        elif options.small_sana:
            values = small_sana(Path(folder) / "sana") | values
        plugin: Plugin[Any] = load_registry().find("models", name)
        context = Context(device=options.device, home=ROOT, cache=Path(folder))
        parameters = plugin.parse(values)
        rows = []
        for seeds in (1, 10):
            prompts = options.prompts if seeds == 1 else max(1, options.prompts // 10)
            requests = make_requests(prompts, seeds)
            costs, before = turns(
                lambda: plugin.create(parameters, context),
                requests,
                options.batch_size,
                options.turns,
            )
            rows.append(
                [
                    f"{kind}{plugin.name}",
                    f"{prompts} x {seeds}",
                    spread([cost.processor for cost in costs["bare loop"]]),
                    spread([cost.processor for cost in costs["engine"]]),
                    f"{statistics.median(before):.2f}",
                    ratio(costs, "processor"),
                    ratio(costs, "wall"),
                ]
            )
    header = [
        "model",
        "prompts x seeds",
        "bare loop, processor s",
        "engine, processor s",
        "of which before the model",
    ]
    header += ["engine / bare loop, processor", "engine / bare loop, clock"]
    text = f"{machine()}; batches of {options.batch_size}.\n\n{table(header, rows)}"
    print(text)
    if options.write:
        part = "small-sana" if options.small_sana else "engine"
        write_between(ROOT / "docs" / "performance.md", part, text)


if __name__ == "__main__":
    main()
