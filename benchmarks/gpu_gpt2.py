"""How much of a GPU does training GPT-2 124M use, and how fast does it write there? Needs a CUDA device."""

from __future__ import annotations

import time

from benchmarks.measuring import Comparison, Target
from benchmarks.report import BenchmarkConfig, Report, run_benchmark
from command_line import UserError

WINDOW, WINDOWS = 1024, 32
WARM_UP_STEPS, STEPS = 10, 40
NEW_TOKENS = 256
PEAKS = {"H200": 989.5, "H100 80GB HBM3": 989.5, "H100 PCIe": 756.0, "A100": 312.0, "RTX 4090": 165.2}
"""Dense bf16 TFLOP/s by the vendor's datasheets, by a part of the device's name."""


def peak_teraflops(name: str) -> float:
    """The datasheet's figure; raises UserError for a device that is not in the table."""
    for part, peak in PEAKS.items():
        if part in name:
            return peak
    raise UserError(f"the bf16 peak of {name} is not known; add it to PEAKS in benchmarks/gpu_gpt2.py")


def train(windows: int, n_steps: int) -> float:
    """Tokens per second of training on random tokens: bf16, compiled, Muon as by default, all of a step."""
    import torch

    from model.config import preset_config
    from model.gpt import GPT
    from training.config import TrainConfig
    from training.distributed import Workers
    from training.optimizers import build_optimizer
    from training.parallel import LossFunction
    from training.precision import autocast

    device = torch.device("cuda")
    torch.manual_seed(0)
    config = preset_config("gpt2")
    model = GPT(config).to(device).train()
    optimizer = build_optimizer(model, TrainConfig())
    loss_function = LossFunction(model, Workers(), compiled=True)
    token_ids = torch.randint(config.vocab_size, (windows, WINDOW + 1), device=device)

    def step() -> None:
        with autocast(device, "bf16"):
            loss = loss_function(token_ids[:, :-1].contiguous(), token_ids[:, 1:].contiguous())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(WARM_UP_STEPS):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    torch.cuda.synchronize()
    return n_steps * windows * WINDOW / (time.perf_counter() - started)


def decode(n_samples: int, new_tokens: int) -> float:
    """Tokens per second over all samples, bf16 weights, from an empty prompt; the warm-up is left out."""
    import torch

    from data.tokenizers.characters import CharacterTokenizer
    from generation.config import SamplingConfig
    from generation.text_generator import TextGenerator
    from model.config import preset_config
    from model.gpt import GPT

    torch.manual_seed(0)
    tokenizer = CharacterTokenizer("".join(map(chr, range(0x10000, 0x10000 + 50_256))))  # as many tokens as GPT-2 has
    model = GPT(preset_config("gpt2", vocab_size=tokenizer.vocab_size)).to("cuda", torch.bfloat16).eval()
    generator = TextGenerator(model, tokenizer)
    sampling = SamplingConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, num_samples=n_samples)
    generator.generate("", SamplingConfig(max_new_tokens=8, num_samples=n_samples))
    torch.cuda.synchronize()
    started = time.perf_counter()
    generator.generate("", sampling)
    torch.cuda.synchronize()
    return n_samples * new_tokens / (time.perf_counter() - started)


def answer(config: BenchmarkConfig) -> Report:
    """Training and decoding on the first CUDA device."""
    import torch

    from model.config import preset_config
    from model.cost import flops_per_token

    if not torch.cuda.is_available():
        raise UserError("this question needs a CUDA device, and torch sees none here")
    name = torch.cuda.get_device_name()
    peak = peak_teraflops(name)
    flops = flops_per_token(preset_config("gpt2"), WINDOW, training=True)
    windows, n_steps, new_tokens = (2, 2, 8) if config.quick else (WINDOWS, STEPS, NEW_TOKENS)
    trained = [train(windows, n_steps) for _ in range(config.turns(3))]
    written = {n: decode(n, new_tokens) for n in (1, 64)}
    used = [speed * flops / 1e12 for speed in trained]
    return Report(
        "How much of a GPU does training GPT-2 124M use?",
        [Comparison("training GPT-2 124M, bf16", "TFLOP/s", f"peak of {name}", used, [peak], Target("at least", 0.4))],
        [f"decode, {n} at once: {speed:.0f} tokens/s" for n, speed in written.items()],
        facts={"training, tokens/s": trained, "decode, tokens/s": written, "flops per token": flops},
    )


if __name__ == "__main__":
    run_benchmark("gpu_gpt2", __doc__, answer)
