"""Memory does not grow with the slide. The gate on a real 27,000 x 20,000 slide is benchmarks/memory.py."""

from __future__ import annotations

from benchmarks.memory import measure


def test_five_times_the_slide_takes_hardly_more_memory() -> None:
    """The small slide fills what is read ahead and written behind already; the large one is 120 MiB of pixels more.

    The same slide differs by 30 MiB from run to run: mapped pages count, and which are resident is the kernel's choice.
    """
    how = {"backbone": "testing", "codec": "lossless", "shard-tiles": 64}
    small = measure((3_000, 3_000), None, **how)
    large = measure((7_000, 7_000), None, **how)
    print(f"{small['peak_mib']:.0f} MiB and {large['peak_mib']:.0f} MiB ({large['pixel_mib']:.0f} MiB stored)")
    assert large["tiles"] > 5 * small["tiles"]
    assert large["peak_mib"] - small["peak_mib"] < 60
