"""What depends on where tensors lie."""

from __future__ import annotations

import torch

from benchmarks.operations import as_launched
from pipeline.model.device import launches, restore, to_device


def drawn(generator: torch.Generator) -> list[float]:
    return torch.rand(3, generator=generator).tolist()


def test_a_generator_goes_on_from_its_own_state() -> None:
    generator, other = torch.Generator().manual_seed(1), torch.Generator()
    drawn(generator)
    restore(other, generator.get_state())
    assert drawn(other) == drawn(generator)


def test_the_state_of_another_device_s_generator_seeds_it() -> None:
    of_a_gpu = torch.arange(16, dtype=torch.uint8)
    found = []
    for state in (of_a_gpu, of_a_gpu, of_a_gpu.flip(0)):
        generator = torch.Generator()
        restore(generator, state)
        found.append(drawn(generator))
    assert found[0] == found[1] != found[2]


def test_on_a_cpu_nothing_is_copied_or_launched_unless_it_is_pretended() -> None:
    x = torch.ones(2)
    assert to_device(x, "cpu") is x
    assert not launches(x)
    assert launches(x.to("meta"))
    with as_launched():
        assert launches(x)
    assert not launches(x)
