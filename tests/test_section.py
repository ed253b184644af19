"Sections: what a part shows, how glass and pen look, and files that are cleared away."
import numpy as np
from pathgen.paint import ARCHITECTURE, ORGANS, attributes, findings_of
from pathgen.section import parts_of, prune

def test_parts_show_what_the_region_claims():
    for c in ARCHITECTURE:
        for k in range(20):
            organ, a = list(ORGANS)[k % 6], attributes(c, list(ORGANS)[k % 6], np.random.default_rng(k))
            parts, whole = parts_of(c, organ, a), findings_of(c, a)
            said = {f for p in parts.values() for f, v in p.items() if v}
            extra = {"necrosis", "mucin", "smooth_muscle", "fibrous_stroma"}
            assert said <= {f for f, v in whole.items() if v} | extra
            if "epithelium" in parts: assert parts["epithelium"][ARCHITECTURE[c]] and not parts["ground"][ARCHITECTURE[c]]

def test_files_that_are_kept_are_kept_by_their_whole_id(tmp_path):
    for n in ("a.png", "a.painted.png", "ab.png"): (tmp_path / n).touch()
    prune(tmp_path, {"ab"})
    assert [p.name for p in tmp_path.iterdir()] == ["ab.png"]
