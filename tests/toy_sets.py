"The nine classification sets in their published forms, small and painted."
import json
import h5py, numpy as np, pandas as pd
from PIL import Image
from pathgen.sets import CLASSES

def patch(k, seed, px=64):
    "A patch of class number `k`: dots on a ground whose colour and number of dots depend on `k`."
    g = np.random.default_rng([k, seed]); y,x = np.mgrid[:px,:px]
    im = np.full((px,px,3), (235-9*k, 180-7*(k%5), 205), float)
    for cy,cx in g.uniform(0, px, (3+4*k, 2)): im[(y-cy)**2+(x-cx)**2 < 12] = (90+6*k, 60, 140)
    return (im+g.normal(0, 6, im.shape)).clip(0,255).astype(np.uint8)

def put(path, k, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patch(k, seed)).save(path)

def lc25000(root, n):
    for part,name in dict(lung_image_sets="lc_lung", colon_image_sets="lc_colon").items():
        for k,l in enumerate(CLASSES[name]):
            for i in range(n): put(root/part/l/f"{l}{i}.jpeg", k, i)
    rows = [(l, f"{l}{i}.jpeg", i//2) for s in ("lc_lung","lc_colon") for l in CLASSES[s] for i in range(n)]
    pd.DataFrame(rows, columns=["class","file","cluster"]).to_csv(root/"clusters.csv", index=False)

def crc100k(root, n):
    for p,part in enumerate(("NCT-CRC-HE-100K","CRC-VAL-HE-7K")):
        for k,l in enumerate([*CLASSES["crc100k"], "BACK"]):
            for i in range(n): put(root/part/l/f"{l}-{p}{i}.tif", k, 10*p+i)

def skincancer(root, n):
    rows = []
    for k,l in enumerate(CLASSES["skincancer"]):
        for i in range(n):
            f = f"data/tiles/{l}/{l}_ws_{40+i}_{i}.jpg"
            put(root/f, k, i)
            rows.append(dict(file=f, malignicity=l.split("_")[0], **{"class":l}, set=["Test","Train","Validation"][i%3]))
    pd.DataFrame(rows).to_csv(root/"data/tiles-v2.csv", index=False)

def pcam(root, n):
    root.mkdir(parents=True)
    for p,part in enumerate(("train","valid","test")):
        stem = str(root/f"camelyonpatch_level_2_split_{part}_")
        with h5py.File(stem+"x.h5", "w") as f: f["x"] = np.stack([patch(i%2, 100*p+i, 96) for i in range(2*n)])
        with h5py.File(stem+"y.h5", "w") as f: f["y"] = (np.arange(2*n)%2).reshape(-1,1,1,1).astype(np.uint8)
        pd.DataFrame(dict(coord_y=0, coord_x=0, tumor_patch=True, center_tumor_patch=True, wsi=[f"{part}_{i//2}" for i in range(2*n)])).to_csv(stem+"meta.csv")

def bach(root, n):
    files = [(f"{l[:2].lower()}{i:03d}.tif", l) for l in CLASSES["bach"] for i in range(n)]
    for j,(f,l) in enumerate(files): put(root/"Photos"/l/f, j//n, j%n)
    pd.DataFrame(files).to_csv(root/"Photos/microscopy_ground_truth.csv", header=False, index=False)

def osteo(root, n):
    for k,l in enumerate(CLASSES["osteo"]):
        for i in range(n): put(root/l/f"{['Case-3','Case-4','Case-48-P5','P9'][i%4]}-A1{k}-{i}00-{i}50_1{i}.jpg", k, i)

def osteo_tcia(root, n):
    rows = []
    for k,l in enumerate([*CLASSES["osteo"], "viable: non-viable"]):
        for i in range(n):
            put(root/f"Training-Set-{1+i%2}/set{1+k}/Case-48-P5-C{k}{i}-241-142.jpg", k, i)
            rows.append({"image.name": f"Case 48 - P5 C{k}{i}-241-142", "classification": l, "area": 1})
    pd.DataFrame(rows).to_csv(root/"ML_Features_1144.csv", index=False)

def wsss4luad(root, n):
    for k,flags in enumerate(("[1, 0, 0]","[0, 0, 1]","[1, 1, 0]","[0, 1, 0]")):
        for i in range(n): put(root/f"1.training/{430000+i//2}-{1000*k+i}-480-{flags}.png", k%2, i+10*k)

def sicapv2(root, n):
    for part in ("Train","Test"):
        rows = []
        for k,l in enumerate(CLASSES["sicapv2"]):
            for i in range(n):
                f = f"16B000{part[:2]}{i//2}_Block_Region_1_0_{i}_xini_{k}_yini_5.jpg"
                put(root/"images"/f, k, i + (part=="Test")*50)
                rows.append(dict(image_name=f, **{g: int(g==l) for g in CLASSES["sicapv2"]}, G4C=0))
        (root/"partition/Test").mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_excel(root/f"partition/Test/{part}.xlsx", index=False)

MAKERS = dict(lc25000=lc25000, crc100k=crc100k, skincancer=skincancer, pcam=pcam, bach=bach, osteo=osteo, wsss4luad=wsss4luad, sicapv2=sicapv2)
FOLDERS = {n: "lc25000" if n.startswith("lc_") else n for n in CLASSES}

def write_sets(root, names=FOLDERS, n=4, standin=False):
    "Write the sets under `root`; returns the list NAME=FOLDER."
    for f in {FOLDERS[s] for s in names}:
        MAKERS[f](root/f, n)
        labels = [l for s in names if FOLDERS[s]==f for l in CLASSES[s]]
        if standin: (root/f/"standin.json").write_text(json.dumps({"set": f, "labels": labels, "made_by": "toy_sets", "note": "painted"}))
    return [f"{s}={FOLDERS[s]}" for s in names]
