from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import DataError, NotFoundError, UsageError
from histostore.head_specs import LabelSpec
from histostore.heads.labels import class_labels

VALUES = np.array(["glom", "cortex", "", None, "glom", "cortex", "fold", "cortex"], dtype=object)
SLIDE = np.array(["a", "a", "a", "a", "b", "b", "b", "b"])
IDS = [f"{s}:{i}" for i, s in enumerate(SLIDE)]


def test_every_value_is_a_class_without_positives():
    labels, classes, report = class_labels(LabelSpec(column="c", ignore=("fold",)), VALUES, SLIDE, IDS)
    assert classes is None
    assert labels.tolist() == ["glom", "cortex", None, None, "glom", "cortex", None, "cortex"]
    assert report.counts == {"without a label": 2, "ignored": 1}


def test_negatives_are_only_what_was_annotated_as_such():
    spec = LabelSpec(column="c", positive=("glom",), negative=("cortex",))
    labels, classes, report = class_labels(spec, VALUES, SLIDE, IDS)
    assert classes == ("cortex", "glom")
    assert labels.tolist() == ["glom", "cortex", None, None, "glom", "cortex", None, "cortex"]
    assert report.counts["ignored"] == 1
    rest = class_labels(LabelSpec(column="c", positive=("glom",)), VALUES, SLIDE, IDS)
    assert rest[1] == ("not glom", "glom")
    assert rest[0].tolist()[6] == "not glom"


def test_negatives_are_drawn_by_slide_and_seed_whatever_the_order():
    n = 200
    values = np.array(["glom"] * 10 + ["cortex"] * (n - 10), dtype=object)
    slide, ids = np.repeat("a", n), [f"a:{i}" for i in range(n)]
    spec = LabelSpec(column="c", positive=("glom",), negative=("cortex",), negatives_per_positive=3)
    labels, _, report = class_labels(spec, values, slide, ids, seed=1)
    assert (labels == "cortex").sum() == 30
    assert report.counts == {"negatives not drawn": n - 40}
    order = np.random.default_rng(0).permutation(n)
    again = class_labels(spec, values[order], slide[order], [ids[i] for i in order], seed=1)[0]
    assert again.tolist() == labels[order].tolist()
    assert class_labels(spec, values, slide, ids, seed=2)[0].tolist() != labels.tolist()


def test_bad_labels_are_one_line():
    with pytest.raises(NotFoundError, match="did you mean 'glom'"):
        class_labels(LabelSpec(column="c", positive=("glmo",)), VALUES, SLIDE, IDS)
    with pytest.raises(DataError, match="no row of c is negative"):
        class_labels(LabelSpec(column="c", positive=("glom", "cortex", "fold")), VALUES, SLIDE, IDS)
    with pytest.raises(UsageError, match="negative classes need positive"):
        LabelSpec(column="c", negative=("x",))
