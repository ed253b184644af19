"PathGen-LLaVA: it learns to answer, its folder opens anywhere, a server serves it, and an answer rests on the image."
import json, os, re, shutil, signal, socket, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest
from PIL import Image
from conftest import ROOT
from test_endpoint import wait_until_served
from pathgen.chat import data_url, put_choice
from pathgen.clip import build_clip, save_clip
from pathgen.core import PathgenError, read_json, write_table
from pathgen.llava import card_text, evidence, letters_right, read_conversations, run_llava, train_llava
from pathgen.lmm import llm_of, load_lmm

KINDS = {"Mature adipocytes.":(240,230,240), "Fused glands.":(150,60,150)}

def talk(k, *turns): return dict(id=f"t{k}", image=f"patches/{k}.png", conversations=[{"from":w, "value":v} for t in turns for w,v in zip(("human","gpt"), t)])

@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "Eight captioned squares, and conversations on eight others."
    d = tmp_path_factory.mktemp("llava")/"data"
    for f in ("init","patches","instruct"): (d/f).mkdir(parents=True)
    for f in ("init","patches"):
        for k in range(8): Image.new("RGB", (120,120), tuple(np.array([*KINDS.values()][k%2])+k)).save(d/f/f"{k}.png")
    said = [[*KINDS][k%2] for k in range(8)]
    write_table(pd.DataFrame(dict(pair_id=[f"p{k}" for k in range(8)], image=[f"init/{k}.png" for k in range(8)], caption=said, source=["pathcap","quilt"]*4, split="train")), d/"init/pairs.parquet")
    asked = [talk(k, ("<image>\nWhat is seen?", said[k]), ("Is there fat?", "Yes, there is." if k%2 == 0 else "No, there is none.")) for k in range(6)]*8
    held = [talk(k, ("<image>\n" + put_choice("What is seen?", list(KINDS)), "AB"[k%2])) for k in (6,7)]
    for s,rows in dict(train=asked, val=held).items(): (d/f"instruct/llava-{s}.json").write_text(json.dumps(rows))
    save_clip(build_clip(seed=2, device="cpu"), d/"models/clip")
    return d

def run(root, **kw):
    how = dict(data=str(root), seed=0, device="cpu", name="llava", clip="clip", start=None, instruct=["instruct/llava-train.json"], val="instruct/llava-val.json", captions_shown=8,
               image_px=None, align_epochs=4.0, align_lr=1e-3, epochs=10.0, lr=2e-3, batch=8, accumulate=1, checkpointing=False, processes=1)
    return run_llava(**how | kw)

@pytest.fixture(scope="module")
def ran(root): return run(root)

def test_it_answers_from_the_image_and_keeps_its_numbers(root, ran):
    ims = [np.asarray(Image.open(root/f"patches/{k}.png")) for k in (6,7)]
    assert ran["model"].generate(["What is seen?"]*2, ims, 12) == list(KINDS)
    m = read_json(root/"metrics/llava.json")
    assert m == ran["metrics"] and (m["captions"], m["conversations"], m["turns"], m["questions"]) == (8, 48, 96, 2) and m["words_right"] == 1
    assert [len(l) for l in ran["losses"]] == [4, 60]

def test_nothing_is_trained_twice_and_the_state_between_the_stages_is_kept(root, ran):
    before = {p:p.stat().st_mtime_ns for p in (root/"models/llava").rglob("*.safetensors")}
    assert len(before) == 2 and run(root)["model"].hash == ran["model"].hash
    assert {p:p.stat().st_mtime_ns for p in before} == before
    assert load_lmm(root/"models/llava/aligned", "cpu").hash != ran["model"].hash

def test_the_card_tells_what_the_run_knows(root, ran):
    card = (root/"models/llava/README.md").read_text()
    assert card.startswith("---\n") and card.count("# llava\n")==1 and card.count("Load it:")==1 and 'load_lmm("llava")' in card
    for fact in ("tower of the CLIP `clip`", "started from random weights", "8 captions of PathGen_init", "48 conversations of 96 turns of `instruct/llava-train.json`",
                 "| `words_right` | 1 |", "| `questions` | 2 |"): assert fact in card, fact
    assert float(re.search(r"\| `val_loss` \| ([\d.]+) \|", card)[1]) == pytest.approx(ran["metrics"]["val_loss"], rel=1e-3)
    assert not re.search("synthetic|painted by", card, re.I), "these squares are no phantom"
    run(root)
    assert (root/"models/llava/README.md").read_text()==card, "once, however often it runs"

@pytest.mark.parametrize("files, says", [(["patches/PHTM-BR-0002/a.jpg","phantom/init/b.jpg"], r"\*\*Synthetic\*\*: every"), (["patches/TCGA-1/a.jpg","patches/PHTM-1/b.jpg"], "Partly synthetic.*50%"),
    (["patches/TCGA-1/a.jpg"], "not from the phantom")])
def test_the_card_says_whose_tissue_it_was(files, says):
    text = card_text(None, "llava-hf/llava-1.5-13b-hf", [], {"x.json":[dict(prompt="Q", answer="A", image=f) for f in files]}, dict(val_loss=1.))
    assert re.search(says, text) and "has no tower" in text and "`llava-hf/llava-1.5-13b-hf`, whose licence applies" in text and "stage one" not in text

def test_a_blind_one_reads_the_same_questions(root):
    r = run(root, name="llava_blind", clip=None)
    assert not r["model"].sees and r["metrics"]["captions"] == 0 and "val_loss_other_image" not in r["metrics"]
    assert len(r["quiz"]) == 2

def test_a_blind_one_from_a_llava_leaves_the_tower(root, ran):
    start = load_lmm(root/"models/llava", "cpu")
    weight = llm_of(start).model.embed_tokens.weight
    assert weight is start.model.model.language_model.embed_tokens.weight, "a language model inside, not a copy"
    m = train_llava([], [dict(prompt="What is seen?", answer="Fused glands.", image="patches/1.png")]*8, root/"models/blinded", root, None, str(root/"models/llava"), lr=1e-9, batch=8)[0]
    assert not m.sees and m.model.config.model_type == "llama" and not any("vision" in n for n,_ in m.model.named_parameters())
    np.testing.assert_allclose(m.model.model.embed_tokens.weight.detach(), weight.detach(), atol=1e-6)
    r = run(root, name="llava_blind", clip=None, start=str(root/"models/llava"))
    assert not r["model"].sees and "val_loss_other_image" not in r["metrics"]

def test_an_answer_rests_on_what_it_names(ran):
    half = np.full((112,112,3), [*KINDS.values()][0], np.uint8); half[:,56:] = [*KINDS.values()][1]
    e = [evidence(ran["model"], half, "What is seen?", a, 2).sum(0) for a in KINDS]
    assert e[0][0]-e[0][1] > e[1][0]-e[1][1], "fat lies on the left, glands on the right"

def test_a_reader_asks_on_a_patch_of_choice(root, ran, capsys):
    import matplotlib.pyplot as plt
    from pathgen import llava
    cells = ["".join(c["source"]) for c in read_json(ROOT/"nbs/42_llava.ipynb")["cells"] if c["cell_type"] == "code"]
    cell, = (c for c in cells if c.startswith("#| run\npatch = "))
    assert [l.split(" = ")[0] for l in cell.splitlines()[1:3]] == ["patch","question"]
    def ask(model, patch, question):
        changed = re.sub("^question = .*", f"question = {question!r}", re.sub("^patch = .*", f"patch = {patch!r}", cell, flags=re.M), flags=re.M)
        exec(changed, vars(llava) | dict(ran=dict(model=model), data=str(root), val="instruct/llava-val.json", plt=SimpleNamespace(show=lambda: None), Image=Image))
    for patch,where,said in ((1, "7", "Fused glands."), (str(root/"patches/6.png"), "6", "Mature adipocytes.")):
        ask(ran["model"], patch, "What is seen?")
        axs = plt.gcf().axes
        assert axs[0].get_title() == where and "rests on" in axs[1].get_title() and axs[2].texts[0].get_text() == f"What is seen?\n\n{said}"
    plt.close("all")
    ask(SimpleNamespace(sees=False, generate=lambda prompts, max_tokens: [f"heard: {prompts[0]}"]), 0, "Is there fat?")
    assert capsys.readouterr().out == "heard: Is there fat?\n"

def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(PathgenError, match="clip_9 is missing: run `pathgen run clip_9` first"): run(root, clip="clip_9")
    with pytest.raises(PathgenError, match="llava-none.json"): run(root, val="instruct/llava-none.json")
    with pytest.raises(PathgenError, match="do not fill a batch of 64"): run(root, name="other", batch=64)

def test_letters_count_where_a_letter_is_the_answer(ran, root):
    rows = read_conversations(root/"instruct/llava-train.json", root)
    assert letters_right(ran["model"], rows, root).empty, "an answer that begins with A is no letter"

def test_transformers_serve_serves_it(root, ran, tmp_path, monkeypatch):
    from openai import OpenAI
    hub = tmp_path/"hub/models--pathgen--llava"
    (hub/"refs").mkdir(parents=True); (hub/"refs/main").write_text("0"*40)
    shutil.copytree(root/"models/llava", hub/"snapshots"/("0"*40), ignore=shutil.ignore_patterns("aligned"))
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = os.environ | dict(HF_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path/"hub"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    command = [Path(sys.executable).parent/"transformers", "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path/"log", "w") as log: p = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        assert wait_until_served(url, p, tmp_path/"log") == ["pathgen/llava"]
        client = OpenAI(api_key="none", base_url=url)
        for k,want in zip((6,7), KINDS):
            im = np.asarray(Image.open(root/f"patches/{k}.png").resize((112,112)))
            say = [dict(role="user", content=[dict(type="image_url", image_url=dict(url=data_url(im))), dict(type="text", text="What is seen?")])]
            said = client.chat.completions.create(model="pathgen/llava", messages=say, max_tokens=12, temperature=0).choices[0].message.content
            assert said.strip() == want
    finally:
        os.killpg(p.pid, signal.SIGKILL); p.wait()
