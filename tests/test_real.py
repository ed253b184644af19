"The page on real slides: the trained agents take patches one after the other."
from types import SimpleNamespace
import pandas as pd, pytest
from pathgen import chat, real
from pathgen.core import PathgenError, read_table, write_table
from pathgen.describe import DESCRIBE
from pathgen.revise import REVISE
from pathgen.summarize import SUMMARISE
from test_describe import folder

SAYS = dict(describe="The field shows mucin and mature adipocytes.", revise="seen: adipocytes. do: delete: mucin; delete: cartilage", summarize="Mature adipocytes.")
ROLES = dict(describe=DESCRIBE, revise=REVISE, summarize=SUMMARISE)

class Agent:
    hash = "abc"
    def __init__(self, name, says): self.role, self.says, self.heard = dict(role=ROLES[name].name, prompt_hash=ROLES[name].prompt_hash), says, []
    def generate(self, prompts, images, max_tokens): self.heard += prompts; return [self.says]*len(prompts)

def agents(monkeypatch, root, **says):
    made = {str(root/"models"/k):Agent(k, says.get(k, v)) for k,v in SAYS.items()}
    for f in made: (root/"models"/f).mkdir(parents=True)
    monkeypatch.setattr(chat, "_lmm", lambda target, device: made[target])
    monkeypatch.setattr(chat, "_origin", lambda target: (made[target].hash, made[target].role))
    return list(made.values())

def given(root):
    kept = read_table(folder(root)/"patches.parquet").query("kept")
    write_table(kept[["patch_id","slide_id"]].assign(text="Builtin words.", n_tokens=4), root/"text/captions.parquet")

def test_patches_pass_through_three_agents(tmp_path, monkeypatch):
    given(tmp_path)
    asked = agents(monkeypatch, tmp_path)
    df = real.beside_agents(tmp_path, tmp_path/"models", n=2, device="cpu")
    assert len(df) == 4 and set(df.builtin) == {"Builtin words."} and set(df.caption) == {"Mature adipocytes."} and (df.refused == 1).all()
    assert set(df.described) == {SAYS["describe"]} and set(df.revised) == {"The field shows mature adipocytes."}
    assert all(SAYS["describe"] in p for p in asked[1].heard) and all("shows mature adipocytes." in p for p in asked[2].heard) and [len(a.heard) for a in asked] == [4,4,4]
    html = real.show_beside(df, tmp_path)
    assert html.count("data:image/jpeg") == 4 and html.count("line-through") == 4 and html.count("1 operations refused") == 4 and html.count("Builtin words.") == 4

def test_an_agent_that_says_nothing_good_leaves_no_caption_and_the_next_is_not_asked(tmp_path, monkeypatch):
    given(tmp_path)
    asked = agents(monkeypatch, tmp_path, revise="I do not know")
    df = real.beside_agents(tmp_path, tmp_path/"models", n=1, device="cpu")
    assert df.described.notna().all() and df.revised.isna().all() and df.caption.isna().all() and asked[2].heard == []
    assert real.show_beside(df, tmp_path).count(real.NONE) == 2
    with pytest.raises(PathgenError, match="describe is missing"): real.beside_agents(tmp_path, tmp_path/"elsewhere", n=1)

def test_no_prompt_set_and_no_shot_count_is_left_out(tmp_path):
    zero = [dict(title="LC-Lung", model=m, prompts=p, split="all", n=9, chance=1/3, accuracy=.5, low=.4, high=.6) for m in ("clip","clip_init") for p in ("more","table12")]
    write_table(pd.DataFrame(zero), tmp_path/"eval/zeroshot_summary.parquet")
    few = [dict(set=s, title=s, model=m, cut="by group", shots=k, seed=i, accuracy=k/10+i/100, paper_protocol=k/10+.05+i/100)
           for s,most in (("a",2), ("b",4)) for m in ("clip","histogram") for k in (1, 2, 4) if k <= most for i in (0, 2)]
    write_table(pd.DataFrame(few), tmp_path/"eval/fewshot.parquet")
    assert len(real.by_words(tmp_path)) == 4 and real.by_words(tmp_path).loc[("LC-Lung","clip","table12"), ["split","images","low","high"]].tolist() == ["all", 9, .4, .6]
    t = real.by_labels(tmp_path)
    assert len(t) == 4 and t.loc[("a","by group","clip"), [1, 2, "paper_protocol"]].tolist() == pytest.approx([.11, .21, .26]) and t[4].isna().sum() == 2
    assert t.loc[("b","by group","histogram"), [4, "paper_protocol"]].tolist() == pytest.approx([.41, .46]), "the protocol at the largest count of the set"
