"Agents are taught from pairs, go to work by their folder, and bad teachers, texts and operations end in one line."
import json
import numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import chat, lmm, train_agent as ta
from pathgen.clip import build_clip, save_clip
from pathgen.core import PathgenError, read_json, read_table, write_table
from pathgen.describe import DESCRIBE
from pathgen.findings import claims
from pathgen.paint import paint_patch
from pathgen.revise import REVISE, Operation, apply
from pathgen.summarize import SUMMARISE

CAPTIONS = dict(adipose="Breast: mature adipocytes.", carcinoma_poor="Lung: solid sheets of tumour cells.", normal_glands="Colon: regular, evenly spaced glands.")

@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Nine pairs and an untrained CLIP."
    d = tmp_path_factory.mktemp("agents")/"data"
    (d/"init").mkdir(parents=True)
    rows = []
    for k in range(9):
        c = list(CAPTIONS)[k%3]
        Image.fromarray(paint_patch(c, "breast", mpp=.64, rng=np.random.default_rng(k))[0]).save(d/"init"/f"{k}.jpg")
        rows.append(dict(pair_id=f"p{k}", image=f"init/{k}.jpg", caption=CAPTIONS[c], source=["pathcap","quilt","openpath"][k//3], split="train"))
    write_table(pd.DataFrame(rows), d/"init/pairs.parquet")
    save_clip(build_clip(seed=2, device="cpu"), d/"models/clip_init")
    return d

def run(root, role="describe", provider="builtin", **kw):
    how = dict(data=str(root), seed=0, device="cpu", workers=1, max_failed=.1, max_requests=9, role=role, provider=provider, pairs=9, mpp=.64, clip=None, start=None, image_px=None,
               align_epochs=1.0, epochs=1.0, batch=4, accumulate=1, lr=1e-3, align_lr=1e-3, checkpointing=False, processes=1, test_per_slide=2)
    return ta.run_train_agent(**how | kw)

@pytest.fixture(scope="module")
def taught(root): return {r:run(root, r) for r in ("describe","revise","summarize")}

def test_three_agents_and_their_numbers(root, taught):
    for role,r in taught.items():
        assert (root/"models"/role/"model.safetensors").exists() and not (root/"models"/role/"checkpoints").exists()
        m = read_json(root/"metrics"/f"{role}_train.json")
        assert m["conversations"] == len(r["lessons"][-1][0]) and np.isfinite(m["loss"]) and not r["said"], "there is no phantom to be tested on"
        assert m["teacher_failed"] == 0 == m.get("unmended", 0) and ("unmended" in m) == (role == "revise")
        card = (root/"models"/role/"README.md").read_text()
        assert "license: apache-2.0" in card and f"starting from {'random weights' if role == 'describe' else 'describe'}" in card and f"role `{role}`" in card
        assert "million weights, a language model (llama, 3 layers)" in card and "synthetic" not in card and ("a tower that sees (clip_vision_model, 112 px)" in card) == (role != "summarize")
    assert [len(l) for l in taught["describe"]["losses"]] == [2, 2]

def test_a_second_run_trains_nothing(root, taught):
    before = {p:p.stat().st_mtime_ns for p in (root/"models").rglob("model.safetensors")}
    r = run(root)
    assert before == {p:p.stat().st_mtime_ns for p in (root/"models").rglob("model.safetensors")}
    assert r["losses"] == taught["describe"]["losses"]

def test_an_agent_that_other_code_taught_is_taught_again(root, taught, tmp_path, monkeypatch):
    (tmp_path/"other.py").write_text("# another way to train")
    monkeypatch.setattr(lmm, "__file__", str(tmp_path/"other.py"))
    monkeypatch.setattr(lmm, "train_lmm", lambda *a, **k: pytest.fail("taught again"))
    before = (root/"models/describe/training.json").read_bytes()
    try:
        with pytest.raises(pytest.fail.Exception): run(root)
    finally: (root/"models/describe/training.json").write_bytes(before)

def test_enhanced_texts_keep_what_captions_say(root, taught):
    df = read_table(root/"agents/enhanced.parquet")
    assert len(df) == 9 and all(claims(c).items() <= claims(t).items() for c,t in zip(df.caption, df.text))

def test_every_answer_of_the_revise_agent_leads_back(root, taught):
    df = read_table(root/"agents/enhanced.parquet")
    right = [claims(t) for t in df.text]
    for r in ta.revising(ta.spoil(df, "builtin", untouched=0)):
        text = r["prompt"].partition("reads: ")[2].rpartition(" What must")[0]
        ops = [Operation(**o) for o in REVISE.read(r["answer"])["operations"]]
        assert len(ops) == 1 and claims(text) not in right and claims(apply(text, ops[0])) in right

SAYS = dict(describe="The field shows mature adipocytes.", summarize="Mature adipocytes.", revise="seen: mucin. do: delete: mature adipocytes; add: mucin")

@pytest.mark.parametrize("folder,role", dict(describe=DESCRIBE, summarize=SUMMARISE, revise=REVISE).items())
def test_an_agent_goes_to_work_by_its_folder_with_its_prompt_alone(root, taught, folder, role, monkeypatch):
    from pathgen.lmm import Lmm
    asked = []
    monkeypatch.setattr(Lmm, "generate", lambda self, prompts, images, max_tokens: asked.append((self.name, prompts)) or [SAYS[folder]]*len(prompts))
    given = dict(source="colon", text="Fat.", description="Fat.", image=np.asarray(Image.open(root/"init/0.jpg")))
    said = chat.ask_many(role, f"hf:{root/'models'/folder}", [given]*3, device="cpu")
    assert [a.value for a in said] == [role.schema(**role.read(SAYS[folder]))]*3
    assert asked == [(str(root/"models"/folder), [chat.render(role, **given)]*3)], "one batch, no schema"
    assert said[0].provenance["model"] == taught[folder]["agent"].hash

def test_without_its_teacher(root, tmp_path):
    with pytest.raises(PathgenError, match="enhanced.parquet"): run(tmp_path, "summarize")
    with pytest.raises(PathgenError, match="unknown provider"): run(root, provider="oracle")
    with pytest.raises(PathgenError, match="cannot be loaded"): run(root, start=str(tmp_path/"no model"))

def test_a_teacher_that_answers_garbage_leaves_no_empty_lesson(root, monkeypatch, tmp_path):
    monkeypatch.setitem(chat.RULES, "enhance", lambda **kw: dict(text=""))
    with pytest.raises(PathgenError, match="6 of 6 enhanced failed, such as p"): run(root, pairs=6)
    monkeypatch.setitem(chat.RULES, "break", lambda **kw: dict(text="", op="add"))
    with pytest.raises(PathgenError, match="7 of 7 spoilt failed, such as p0: role break: .* no good answer in 3 tries"): run(root, "revise")
    monkeypatch.setitem(chat.RULES, "summarise", lambda **kw: dict(caption="..."))
    with pytest.raises(PathgenError, match="18 of 18 summarised failed, such as p0: role summarise: .* no words"): run(root, "summarize")

def test_what_a_teacher_owes_is_counted_and_bounded(root, taught, monkeypatch):
    good, df = chat.RULES["break"], read_table(root/"agents/enhanced.parquet")
    def breaks(description, seed, **kw):
        if seed == 0: return dict(text="I am sorry.", op="add", after="sorry")
        if seed == 1: return dict(text=f"{description[:-1]} in psammoma bodies.", op="add", after="in psammoma bodies")
        return good(description=description, seed=seed, **kw)
    monkeypatch.setitem(chat.RULES, "break", breaks)
    lessons = lambda share: ta._spoilings(df, "builtin", 0, 3, root/"agents/spoilt.parquet", share, {})
    with pytest.raises(PathgenError, match="spoilt failed, such as p.: .*base.max_failed allows a share of 0.1"): lessons(.1)
    (rows, owed), failed = lessons(.9), read_table(root/"agents/spoilt_failed.parquet")
    assert owed["teacher_failed"] > 0 and owed["unmended"] > 0 and len(failed) == sum(owed.values()) == 27-len(rows)
    assert (failed.error == ta.UNMENDED).sum() == owed["unmended"] and set(failed.pair_id) == {"p0","p1"} and rows.text.notna().all()
    assert [REVISE.read(w)["operations"] != [] for w in rows.way] == (rows.op != "none").tolist()

def test_what_the_lexicon_cannot_undo_is_undone_as_the_teacher_did_it():
    right = "Regular, evenly spaced glands beside a serrated margin. Necrosis is seen."
    broken = lambda op, before, after, text: chat.check(chat.BREAK, dict(text=text, op=op, before=before, after=after), dict(description=right))
    strange = broken("edit", "serrated", "smooth", right.replace("serrated", "smooth"))
    o = ta.way_back(strange, right)
    assert ta.mend(strange.text, right) is None and (o.op, o.before, o.after) == ("edit", "smooth", "serrated") and apply(strange.text, o) == right
    assert ta.way_back(broken("delete", "Necrosis is seen.", "", right.replace(" Necrosis is seen.", "")), right).op == "add"
    assert ta.way_back(broken("add", "", "in psammoma bodies", right[:-1]+" in psammoma bodies."), right) is None, "no operation takes words out that no finding holds"

def test_a_llava_lends_its_language_model_to_another_tower(root, taught, tmp_path):
    from shutil import copytree
    for d in ("init","models/clip_init"): copytree(root/d, tmp_path/d)
    r = run(tmp_path, start=str(root/"models/describe"), image_px=224)
    assert r["agent"].px == 224 and len(r["agent"].tokenizer) == len(taught["describe"]["agent"].tokenizer)

def test_a_page_shows_all_its_stages_where_a_cell_asks_for_it(tmp_path, monkeypatch):
    import nbformat
    from conftest import ROOT
    monkeypatch.syspath_prepend(ROOT/"docs")
    from notebooks import done_cells
    cell = lambda id, source, said: nbformat.v4.new_code_cell(source, id=id, outputs=[nbformat.v4.new_output("stream", text=said)])
    (tmp_path/"dvc.yaml").write_text("stages: {one: {}, two: {}}")
    for d in ("nbs","runs"): (tmp_path/d).mkdir()
    for s in ("one","two"):
        cells = [cell("a", "#| run\nrole", s), cell("b", "#| run\n#| every\nrole", s), cell("c", f"#| run\n#| every\n{s}", s)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/f"runs/35_agents.{s}.ipynb")
    done = done_cells(tmp_path/"nbs/35_agents.ipynb", tmp_path/"runs")
    assert {i:[o["text"] for o in c.outputs] for i,c in done.items()} == dict(a=["one"], b=["one","two"], c=["one"]) and done_cells(tmp_path/"nbs/36.ipynb", tmp_path/"runs") == {}
