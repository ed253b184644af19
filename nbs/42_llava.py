# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %%
#| default_exp llava

# %% [markdown]
# # PathGen-LLaVA
#
# > PathGen-CLIP gets a language model: aligned on captions first, then taught to answer questions about a patch.

# %% [markdown]
# A CLIP says how well a sentence fits an image; it cannot be asked. The paper (section 4.5, appendix C.5) joins its CLIP tower to an LLM and trains the two as LLaVA does: **stage one** shows it the captions of PathGen_init, so that the LLM learns to read
# what the tower sees; **stage two** shows it PathGen-Instruct, so that it learns to answer. The paper takes PathGen-CLIP-L and Vicuna-13B; the default run takes the tiny CLIP of this run and a small Llama that starts from random weights and knows no word but those of its lessons.
#
# Model, trainer and export are those of the agents ([LLaVA](05_lmm.ipynb)): this chapter brings the lessons, and two questions to the result. Does it answer right on patients that it never saw? And does an answer come from the image?
#
# The same notebook trains what PathGen-LLaVA is compared with: `llava_init` has the tower of the initial CLIP, and `llava_blind` has no tower and reads the same questions without an image. The state between the stages is kept as well: a LLaVA that was never instructed.

# %%
#| export
import re
from pathlib import Path
import numpy as np, pandas as pd
from pathgen.core import PathgenError, need, one_line, pick_device, read_json, read_table, rng, write_metrics

# %%
#| hide
import json, tempfile
from fastcore.test import test_eq, test_fail
from PIL import Image

# %% [markdown]
# ## Stage one: captions
#
# As many captions of every source of PathGen_init, each the answer to a request for one. The request is worded in several ways, as in LLaVA, so that the model does not learn one sentence by heart.

# %%
#| export
REQUESTS = ("Describe this image.", "What does this image show?", "Give a short caption of this patch.", "Sum up what is seen here.",
            "What is in this field?", "Say in a sentence what this is.")

def captions(
    data, # Root of everything produced
    n:int, # Pairs
    seed:int=0, # Of the draw
)->list: # Conversations: prompt, answer, image (a file below `data`)
    "Captions of PathGen_init as conversations, as many of every source."
    df = read_table(need(Path(data)/"init/pairs.parquet"))
    df = df[df.split == "train"].sort_values("pair_id")
    g, k = rng(seed, "align"), -(-n//df.source.nunique())
    df = df.iloc[g.permutation(len(df))].groupby("source").head(k).head(n)
    return [dict(prompt=str(g.choice(REQUESTS)), answer=r.caption, image=r.image) for r in df.itertuples()]

# %%
tmp = Path(tempfile.mkdtemp()); (tmp/"init").mkdir()
pairs = pd.DataFrame(dict(pair_id=[f"p{k}" for k in range(8)], image=[f"init/{k%2}.png" for k in range(8)],
                          caption=["Fat.", "Fused glands."]*4, source=["pathcap","quilt"]*4, split=["train"]*6+["val"]*2))
pairs.to_parquet(tmp/"init/pairs.parquet")
test_eq([sum(r["answer"] == c for r in captions(tmp, 4)) for c in ("Fat.", "Fused glands.")], [2,2])
captions(tmp, 2)

# %% [markdown]
# ## Stage two: instructions
#
# Conversations are read in the form in which LLaVA's own code, and everybody since, writes them: a list of `id`, `image` and `conversations`, with turns of `human` and `gpt` that alternate. Other instruction sets in that form can be named beside PathGen-Instruct. A conversation that
# breaks the form is refused by its place in the file, as a model that is trained on half-read conversations says nothing about it.

# %%
#| export
def _turns(c, where): # (prompt, answer) of each turn of one conversation
    said = [(t.get("from"), str(t.get("value", ""))) for t in c.get("conversations", [])]
    who = [w for w,_ in said]
    if not said or who != ["human","gpt"]*(len(said)//2): raise PathgenError(f"{where}: turns of human and gpt must alternate, here they are {', '.join(map(str, who)) or 'none'}")
    text = [re.sub(r"\s*<image>\s*", "", v).strip() for _,v in said]
    if not all(text): raise PathgenError(f"{where}: a turn has no text")
    return list(zip(text[::2], text[1::2]))

def read_conversations(
    path, # LLaVA JSON
    root, # Folder that its images are below
)->list: # Conversations as of `lmm.Talks`: prompt, answer, more, image
    "Conversations of a file in the form of LLaVA."
    rows = read_json(need(path))
    if not isinstance(rows, list) or not rows: raise PathgenError(f"{path}: a list of conversations is wanted, as LLaVA writes them (id, image, conversations)")
    out = []
    for k,c in enumerate(rows):
        where = f"{path}, conversation {k+1} ({c.get('id', 'without id')})"
        if "image" not in c or not (Path(root)/c["image"]).is_file(): raise PathgenError(f"{where}: {c.get('image', 'its image')} is not below {root}")
        (prompt, answer), *more = _turns(c, where)
        out.append(dict(prompt=prompt, answer=answer, image=c["image"]) | (dict(more=more) if more else {}))
    return out

# %%
for k,c in enumerate([(240,230,240), (150,60,150)]): Image.new("RGB", (112,112), c).save(tmp/f"init/{k}.png")
turn = lambda *said: [{"from":w, "value":s} for w,s in zip(["human","gpt"]*len(said), said)]
talk = [dict(id="a", image="init/0.png", conversations=turn("<image>\nWhat is this?", "Fat.", "Is it malignant?", "No, it is not.")),
        dict(id="b", image="init/1.png", conversations=turn("What is this?\n<image>", "Fused glands."))]
def written(talk):
    (tmp/"talk.json").write_text(json.dumps(talk))
    return read_conversations(tmp/"talk.json", tmp)
written(talk)

# %%
test_fail(lambda: written([talk[0] | dict(image="init/9.png")]), contains="conversation 1 (a): init/9.png is not below")
test_fail(lambda: written([talk[0], talk[1] | dict(conversations=talk[1]["conversations"][:1])]), contains="conversation 2 (b): turns of human and gpt must alternate")
test_fail(lambda: written([talk[0] | dict(conversations=turn("<image>", "Fat."))]), contains="a turn has no text")
test_fail(lambda: written({}), contains="a list of conversations is wanted")

# %% [markdown]
# ## Training
#
# Both stages are lessons of `lmm.teach`. A tokenizer that is made here must know the words of both, so the first stage is told of the second. An LLM with random weights has nothing to protect and learns along in the first stage, where LLaVA trains the projector alone. A model without a tower gets
# the instructions without their images, and no captions: a caption without an image teaches nothing but words.

# %%
#| export
def _unseen(rows): return [{k:v for k,v in r.items() if k != "image"} for r in rows]

def train_llava(
    align:list, # Conversations of stage one
    instruct:list, # Conversations of stage two
    out, # Folder of the model; the state between the stages lies in `aligned` below it
    data, # Root that images are below
    clip, # CLIP whose tower sees: folder or name; None trains a model that is blind
    start=None, # LLM, or a LLaVA whose LLM is taken: folder or name; None makes a small one
    px:int=None, # Side of the images that the tower reads, px; its own where None
    align_epochs:float=1, # Times the captions are shown
    align_lr:float=1e-3, # Largest learning rate of stage one
    epochs:float=1, # Times the instructions are shown
    lr:float=2e-5, # Largest learning rate of stage two
    **kw, # seed, device, batch, accumulate, checkpointing
)->tuple: # the model, losses of each stage
    "Train a LLaVA in two stages, or a blind model in one."
    from pathgen.lmm import BOTH, PROJECTOR, teach
    out = Path(out)
    if not clip:
        m, losses = teach([(_unseen(instruct), None, epochs, lr)], out, data, start=start, **kw)
        return m, [[], *losses]
    texts = [t for r in instruct for turn in [(r["prompt"], r["answer"]), *r.get("more", ())] for t in turn]
    first = [(align, PROJECTOR if start else BOTH, align_epochs, align_lr)]
    _, before = teach(first, out/"aligned", data, clip, start, px, texts=() if start else texts, **kw)
    m, after = teach([(instruct, BOTH, epochs, lr)], out, data, start=str(out/"aligned"), **kw)
    return m, [*before, *after]

# %%
from pathgen.clip import build_clip, save_clip
save_clip(build_clip(seed=2, device="cpu"), tmp/"clip")
lessons = captions(tmp, 6)*4, written(talk)*16
llava, losses = train_llava(*lessons, tmp/"llava", tmp, tmp/"clip", epochs=6, lr=2e-3, batch=8)
fat, glands = (Image.open(tmp/f"init/{k}.png") for k in (0,1))
test_eq(llava.generate(["What is this?"]*2, [fat, glands], 9), ["Fat.", "Fused glands."])
[len(l) for l in losses]

# %%
blind, _ = train_llava([], lessons[1], tmp/"blind", tmp, None, epochs=6, lr=2e-3, batch=8)
test_eq(blind.sees, False)
blind.generate(["What is this?"], max_tokens=9)

# %% [markdown]
# ## Is it right?
#
# The multiple-choice questions of the validation patients have one right answer each. The model is let speak, greedily, and the letter that it begins with is compared. A model that says no letter is wrong. [PathMMU](53_pathmmu.ipynb) asks more severely, on patches of patients that nothing in the pipeline ever met.

# %%
#| export
def first_letter(
    said:str, # An answer
)->str: # A letter from A to H, "" without one
    "The letter that an answer to a multiple-choice question begins with."
    m = re.match(r"\W*(?:the answer is|answer:)?\W*([A-H])\b", said, re.I)
    return m[1].upper() if m else ""

def letters_right(
    model, # `Lmm`
    rows:list, # Conversations whose answers begin with a letter
    data, # Root that images are below
)->pd.DataFrame: # prompt, answer, said, right
    "Ask multiple-choice questions and compare letters."
    from pathgen.clip import load_images
    ask = [t for r in rows for t in [(r["image"], r["prompt"], r["answer"]), *((r["image"], *m) for m in r.get("more", ()))] if first_letter(t[2])]
    files = sorted({i for i,_,_ in ask})
    ims = dict(zip(files, load_images([Path(data)/f for f in files], model.px))) if model.sees and files else {}
    said = model.generate([p for _,p,_ in ask], [ims[i] for i,_,_ in ask] if model.sees else None, 8, "choice") if ask else []
    df = pd.DataFrame([dict(image=i, prompt=p, answer=a, said=s) for (i,p,a),s in zip(ask, said)], columns=["image","prompt","answer","said"])
    return df.assign(right=[first_letter(s) == first_letter(a) for s,a in zip(df.said, df.answer)])

# %%
test_eq([first_letter(s) for s in ("B) Fat.", "(c)", "Answer: D", "The answer is A.", "Fat.", "Because")], ["B","C","D","A","",""])
quiz = [dict(prompt="Which?\nA) Fat\nB) Glands", answer="A) Fat", image="init/0.png")]
letters_right(llava, quiz, tmp)

# %% [markdown]
# ## Where an answer comes from
#
# A fluent answer may come from the question alone. To see whether it does, a part of the image is covered with the mean colour of the rest and the model is asked how likely it finds its own answer now. Where that falls, the answer came from; where it falls nowhere, the model guessed. Nothing is assumed about the inside of the
# model ([Zeiler and Fergus 2014](https://arxiv.org/abs/1311.2901)).

# %%
#| export
def covered(
    image:np.ndarray, # uint8 (h, w, 3)
    cells:int=7, # Cells a side
)->list: # Of uint8 (h, w, 3), row by row
    "The image with each cell of a grid covered in turn."
    h, w = image.shape[:2]
    ys, xs = (np.linspace(0, n, cells+1).astype(int) for n in (h, w))
    grey, out = image.reshape(-1,3).mean(0).astype(np.uint8), []
    for y0,y1 in zip(ys, ys[1:]):
        for x0,x1 in zip(xs, xs[1:]):
            im = image.copy(); im[y0:y1, x0:x1] = grey
            out.append(im)
    return out

def evidence(
    model, # `Lmm` that sees
    image:np.ndarray, # uint8 (h, w, 3)
    prompt:str, # What was asked
    answer:str, # What it said
    cells:int=7, # Cells a side
)->np.ndarray: # (cells,cells), nats a token; large where the answer came from
    "How much less likely an answer becomes when a part of the image is covered."
    from pathgen.lmm import likelihood
    from pathgen.clip import square
    image = square(image, model.px or 336)
    ims = [image, *covered(image, cells)]
    l = likelihood(model, [dict(prompt=prompt, answer=answer, image=k) for k in range(len(ims))], np.stack(ims))
    return (l[0]-l[1:]).reshape(cells, cells)

# %%
half = np.asarray(fat).copy(); half[:, 56:] = (150,60,150)
where = evidence(llava, half, "What is this?", llava.generate(["What is this?"], [half], 9)[0], 4)
test_eq(where.shape, (4,4))
assert np.isfinite(where).all() and np.ptp(where) > 0
where.round(2)

# %% [markdown]
# `show_answer` puts it on one line: the patch, what was asked and said, what the answer rests on, and where the patch was cut.

# %%
#| export
def show_answer(
    model, # `Lmm` that sees
    image, # uint8 (h, w, 3) array or PIL image
    prompt:str, # The question
    where:str="", # Where the image comes from, for the caption
    cells:int=7, # Cells a side of the map of evidence
): # -> matplotlib figure
    "Ask a question about an image; draw the image, the answer and what it rests on."
    import matplotlib.pyplot as plt
    import textwrap
    image = np.asarray(image if isinstance(image, np.ndarray) else image.convert("RGB"))
    said = model.generate([prompt], [image], 96)[0]
    e = evidence(model, image, prompt, said, cells)
    fig, axs = plt.subplots(1, 3, figsize=(9.5,2.7), dpi=80, width_ratios=(1,1,1.9))
    axs[0].imshow(image); axs[0].set_title(where, fontsize=6)
    axs[1].imshow(image, alpha=.6)
    h, w = image.shape[:2]
    lim = max(np.abs(e).max(), 1e-6)
    axs[1].imshow(e, cmap="RdBu_r", vmin=-lim, vmax=lim, alpha=.55, extent=(0,w,h,0), interpolation="bilinear")
    axs[1].set_title(f"rests on (red), at most {lim:.2f} nats a token", fontsize=6)
    wrap = lambda s: "\n".join(textwrap.fill(l, 62) for l in s.splitlines())
    axs[2].text(0, 1, f"{wrap(prompt)}\n\n{wrap(said)}", va="top", fontsize=8, transform=axs[2].transAxes)
    for a in axs: a.axis("off")
    fig.tight_layout(pad=.3)
    return fig

# %%
show_answer(llava, half, "What is this?", "left fat, right glands");

# %% [markdown]
# ## The stage

# %% tags=["parameters"]
data = "../data" # Root of everything produced
seed = 0 # Of weights, order, captions and augmentation
device = "auto" # auto, cpu, cuda
name = "llava" # Folder of the model under data/models
clip = "clip" # CLIP whose tower sees: one of data/models, a folder or a name; null trains a blind model
start = None # LLM, or a LLaVA whose LLM is taken: folder or name; or null for a small Llama with random weights
instruct = ["instruct/train.json"] # Conversations of stage two in LLaVA's form, relative to data; images too
val = "instruct/val.json" # Conversations of other patients on which letters are counted
captions_shown = 90 # Pairs of PathGen_init in stage one [1, inf) (paper: all 700000)
image_px = None # Side of the images that the tower reads, px, or null for its own [16, 2048]
align_epochs = 1.0 # Times the captions are shown (0, inf)
align_lr = 0.001 # Largest learning rate of stage one (0, 1]
epochs = 1.0 # Times the instructions are shown (0, inf)
lr = 0.001 # Largest learning rate of stage two (0, 1]
batch = 8 # Conversations a step and device [1, inf)
accumulate = 1 # Batches a step [1, inf)
checkpointing = False # Trade time for the memory of activations

# %%
#| export
def run_llava(data, seed, device, name, clip, start, instruct, val, captions_shown, image_px, align_epochs, align_lr, epochs, lr,
              batch, accumulate, checkpointing):
    "The whole stage: lessons, a model in data/models, and its letters on patients it did not see."
    from pathgen.sets import named_model
    data = Path(data)
    lessons = [c for f in instruct for c in read_conversations(data/f, data)]
    sees = str(named_model(clip, data)[1]) if clip else None
    align = captions(data, captions_shown, seed) if clip else []
    model, losses = train_llava(align, lessons, data/"models"/name, data, sees, start, image_px, align_epochs, align_lr, epochs, lr,
                                seed=seed, device=pick_device(device), batch=batch, accumulate=accumulate, checkpointing=checkpointing)
    quiz = letters_right(model, read_conversations(data/val, data), data)
    turns = sum(1+len(c.get("more", ())) for c in lessons)
    m = dict(captions=len(align), conversations=len(lessons), turns=turns, loss=float(np.mean(losses[-1][-20:])), questions=len(quiz))
    if len(quiz): m["letters_right"] = float(quiz.right.mean())
    write_metrics(name, m, data)
    return dict(model=model, losses=losses, quiz=quiz, metrics=m)

# %%
#| run
from pathgen.llava import * # run the package, not the copies above
import matplotlib.pyplot as plt, numpy as np
from PIL import Image
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("jpeg") # photographs, not drawings

# %%
#| run
ran = run_llava(data, seed, device, name, clip, start, instruct, val, captions_shown, image_px, align_epochs, align_lr, epochs, lr,
                batch, accumulate, checkpointing)
ran["metrics"]

# %%
#| run
fig, axs = plt.subplots(1, 2, figsize=(8,2), sharey=True)
for ax,ls,what in zip(axs, ran["losses"], ("stage one: captions", "stage two: instructions")):
    ax.plot(ls, lw=.8); ax.set(title=what, xlabel="step")
axs[0].set_ylabel("loss");

# %% [markdown]
# What it says to the first questions of patients that it did not see.

# %%
#| run
with pd.option_context("display.max_colwidth", 200): display(ran["quiz"].drop(columns="image").head(6))

# %% [markdown]
# ## Chat
#
# Choose a patch and ask. The question may be one of PathGen-Instruct's or one's own; a model of the default run knows the words of its lessons and no others.

# %%
#| run
quiz = ran["quiz"].drop_duplicates("image")
if ran["model"].sees:
    for r in quiz.iloc[::max(1, len(quiz)//3)].head(3).itertuples():
        for question in (r.prompt, "Describe this image."):
            show_answer(ran["model"], Image.open(f"{data}/{r.image}"), question, Path(r.image).stem); plt.show()
