"""Memory does not grow with the slide. The gate on a real 27,000 x 20,000 slide is benchmarks/memory.py."""

from __future__ import annotations

from benchmarks.memory import STAGES, measure


def test_five_times_the_slide_takes_hardly_more_memory() -> None:
    """The small slide fills what is read ahead and written behind already; the large one is 120 MiB of pixels more.

    Its tiles are small, so that there are many batches of them, and shards.

    The same slide differs by 30 MiB from run to run: mapped pages count, and which are resident is the kernel's choice.
    """
    how = {"backbone": "testing", "codec": "lossless", "px": 64, "shard-tiles": 512}
    small = measure((3_000, 3_000), None, **how)
    large = measure((7_000, 7_000), None, **how)
    assert large["tiles"] > 5 * small["tiles"]
    for stage in STAGES:
        less, more = small[stage]["peak_mib"], large[stage]["peak_mib"]
        print(f"{stage}: {less:.0f} MiB and {more:.0f} MiB ({large['pixel_mib']:.0f} MiB stored)")
        assert more - less < 60
