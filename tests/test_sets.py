"The published forms of the nine sets, with their faults, and the real samples."
import json, shutil
from pathlib import Path
import h5py, numpy as np, pandas as pd, pytest
from PIL import Image
from pathgen import sets as S
from pathgen.core import PathgenError
from toy_sets import FOLDERS, MAKERS, osteo_tcia, patch, write_sets

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('sets')
    write_sets(root)
    return root

@pytest.fixture
def one(made, tmp_path):
    "A copy of one set that may be spoilt."
    return lambda name: shutil.copytree(made/FOLDERS[name], tmp_path/name)

def line(name, folder):
    with pytest.raises(PathgenError) as e: S.read_set(name, folder)
    assert '\n' not in str(e.value)
    return str(e.value)

SPLITS = dict(lc_lung={'all'}, lc_colon={'all'}, crc100k={'train','test'}, skincancer={'train','val','test'}, pcam={'train','val','test'},
              bach={'all'}, osteo={'all'}, wsss4luad={'all'}, sicapv2={'train','test'})
GROUPS = dict(lc_lung=6, lc_colon=4, crc100k=1, skincancer=4, pcam=12, bach=1, osteo=4, wsss4luad=2, sicapv2=4)
ROWS = dict(lc_lung=12, lc_colon=8, crc100k=64, skincancer=64, pcam=24, bach=16, osteo=12, wsss4luad=12, sicapv2=32)

@pytest.mark.parametrize('name', S.SETS)
def test_each_set_is_read(name, made):
    df = S.read_set(name, made/FOLDERS[name])
    assert list(df) == ['path','item','label','split','group'] and len(df)==ROWS[name]
    assert set(df.split)==SPLITS[name] and df.group.nunique()==GROUPS[name]
    assert set(df.label)==set(S.CLASSES[name])==set(df.attrs['classes'])
    assert df.attrs['name']==name and not df.attrs['standin'] and 'stand-in' not in df.attrs['title']
    images, bad = S.read_images(df, 32)
    assert bad=={} and images.shape==(len(df),32,32,3) and images.std((1,2,3)).min() > 1

def test_the_order_is_that_of_table_2():
    assert list(S.SETS)==['lc_lung','lc_colon','crc100k','skincancer','pcam','bach','osteo','wsss4luad','sicapv2']

def test_labels_go_with_their_images(made):
    "The painted ground tells the class."
    for name in ('bach','pcam','sicapv2','skincancer'):
        df = S.read_set(name, made/FOLDERS[name])
        images, _ = S.read_images(df, 64)
        red = np.median(images[...,0], (1,2))
        for k,l in enumerate(S.CLASSES[name]):
            if k < 8: assert abs(np.median(red[df.label==l])-(235-9*k)) < 4, (name, l)

def test_a_stand_in_has_the_classes_that_it_names(made, one):
    d = one('crc100k')
    for part in ('NCT-CRC-HE-100K','CRC-VAL-HE-7K'): shutil.rmtree(d/part/'MUS')
    assert 'labelled MUS' in line('crc100k', d)
    (d/'standin.json').write_text(json.dumps(dict(set='crc100k', labels=['ADI','TUM'])))
    df = S.read_set('crc100k', d)
    assert df.attrs['title']=='CRC-100K (stand-in)' and list(df.attrs['classes'])==['ADI','TUM']==sorted(set(df.label))
    (d/'standin.json').write_text(json.dumps(dict(set='crc100k', labels=['x'])))
    assert 'labelled with a class of it' in line('crc100k', d)

SHEETS = dict(skincancer='data/tiles-v2.csv', pcam='camelyonpatch_level_2_split_{}_y.h5', sicapv2='partition/Test/{}.xlsx')

def lose(root, name, part, label):
    "Take the images of a class out of one part; returns where the part is listed."
    sheet = root/SHEETS[name].format({'val':'valid'}.get(part, part) if name=='pcam' else part.title())
    if name=='pcam':
        with h5py.File(sheet) as f: y = f['y'][()]
        _h5(sheet, y=np.full_like(y, 1-int(label)))
    elif name=='sicapv2':
        df = pd.read_excel(sheet); df[df[label]==0].to_excel(sheet, index=False)
    else:
        df = pd.read_csv(sheet); df[(df['class']!=label) | ~df.set.str.lower().str.startswith(part)].to_csv(sheet, index=False)
    return sheet

@pytest.mark.parametrize('name, part, label', [(n, p, l) for n,ps in SPLITS.items() if n in SHEETS for p in sorted(ps) for l in list(S.CLASSES[n])[-1:]])
def test_a_class_that_one_part_lacks_is_named_with_the_part(name, part, label, one):
    d = one(name); sheet = lose(d, name, part, label)
    assert line(name, d).startswith(f"{sheet}: no {part} image of {S.SETS[name]['title']} is labelled {label}: ")

@pytest.mark.parametrize('part, folder', [('train','NCT-CRC-HE-100K'), ('test','CRC-VAL-HE-7K')])
def test_a_class_folder_that_is_missing_or_empty_in_one_part(part, folder, one):
    d = one('crc100k'); says = f'{d/folder}: no {part} image of CRC-100K is labelled '
    shutil.rmtree(d/folder/'MUS')
    assert line('crc100k', d).startswith(says+'MUS: ')
    (d/folder/'MUS').mkdir(); (d/folder/'MUS/notes.txt').write_text('no image')
    assert line('crc100k', d).startswith(says+'MUS: ')
    shutil.rmtree(d/folder); (d/folder).mkdir()
    assert line('crc100k', d).startswith(says+'ADI, DEB, '), 'a part without one image is no set in one part'

def test_crc_alone_is_one_part(made):
    for f in (made/'crc100k/CRC-VAL-HE-7K', ):
        df = S.read_set('crc100k', f)
        assert set(df.split)=={'all'} and 'BACK' not in set(df.label)

def test_crc_with_one_of_its_folders_is_one_part(one):
    d = one('crc100k'); shutil.rmtree(d/'CRC-VAL-HE-7K')
    assert set(S.read_set('crc100k', d).split)=={'all'}

def test_osteo_as_tcia_publishes_it(tmp_path):
    osteo_tcia(tmp_path/'o', 3)
    df = S.read_set('osteo', tmp_path/'o')
    assert len(df)==9 and set(df.group)=={'Case-48'} and 'viable: non-viable' not in set(df.label)
    next((tmp_path/'o').rglob('Case-48-P5-C00*.jpg')).unlink()
    assert 'Case-48-P5-C00-241-142.jpg, not there' in line('osteo', tmp_path/'o')

def test_wsss4luad_flags(made, one):
    df = S.read_set('wsss4luad', made/'wsss4luad')
    assert df.label[df.path.str.contains(r'\[1, ')].eq('tumor').all() and not df.path.str.contains(r'\[0, 1, 0').any()
    assert df.label.value_counts().to_dict()==dict(tumor=8, normal=4)
    d = one('wsss4luad'); shutil.copy(next((d/'1.training').iterdir()), d/'1.training/odd.png')
    assert 'odd.png' in line('wsss4luad', d)
    assert S._flags.match('1.2.276.440737_38208_17984_[1_1_0]').groups()==('1.2.276.440737','1','1','0')

def test_an_image_with_two_grades_is_left_out(one):
    d = one('sicapv2'); sheet = d/'partition/Test/Test.xlsx'
    df = pd.read_excel(sheet); df.loc[0, ['NC','G5']] = 1; df.to_excel(sheet, index=False)
    assert len(S.read_set('sicapv2', d))==31

FAULTS = [('sicapv2', 'partition/Test/Train.xlsx', lambda p: pd.read_excel(p).drop(columns='G5').to_excel(p, index=False), 'lacks the column G5'),
    ('sicapv2', 'partition/Test/Train.xlsx', lambda p: p.write_bytes(b'PK no workbook'), 'cannot be read'),
    ('sicapv2', 'partition/Test/Test.xlsx', lambda p: p.unlink(), 'Test.xlsx is missing'),
    ('skincancer', 'data/tiles-v2.csv', lambda p: pd.read_csv(p).drop(columns='set').to_csv(p), 'lacks the column set'),
    ('skincancer', 'data/tiles-v2.csv', lambda p: p.write_text(p.read_text().replace('Validation', 'Maybe')), "'Maybe'"),
    ('skincancer', 'data/tiles-v2.csv', lambda p: p.write_bytes(b''), 'cannot be read'),
    ('bach', 'Photos/Benign/be000.tif', lambda p: p.unlink(), 'be000.tif, not there'),
    ('bach', 'Photos/microscopy_ground_truth.csv', lambda p: p.unlink(), 'microscopy_ground_truth.csv is missing'),
    ('pcam', 'camelyonpatch_level_2_split_test_x.h5', lambda p: p.write_bytes(b'no h5'), 'cannot be read'),
    ('pcam', 'camelyonpatch_level_2_split_test_x.h5', lambda p: p.unlink(), 'test_x.h5 is missing'),
    ('pcam', 'camelyonpatch_level_2_split_test_y.h5', lambda p: _h5(p, z=[1]), 'no array y'),
    ('pcam', 'camelyonpatch_level_2_split_test_x.h5', lambda p: _h5(p, z=[1]), 'no array x'),
    ('pcam', 'camelyonpatch_level_2_split_test_y.h5', lambda p: _h5(p, y=[1]), '8 images'),
    ('pcam', 'camelyonpatch_level_2_split_test_meta.csv', lambda p: p.write_text('a\n1\n'), 'lacks the column wsi'),
    ('pcam', 'camelyonpatch_level_2_split_test_meta.csv', lambda p: p.write_text('wsi\na\n'), '1 rows for 8 images'),
    ('lc_lung', 'clusters.csv', lambda p: p.write_text('class,file\n'), 'lacks the column cluster'),
    ('osteo', 'Viable', shutil.rmtree, 'labelled Viable'),
    ('lc_colon', 'colon_image_sets/colon_n', lambda p: [f.unlink() for f in p.iterdir()], 'labelled colon_n')]

def _h5(path, **arrays):
    with h5py.File(path, 'w') as f:
        for k,v in arrays.items(): f[k] = np.array(v)

@pytest.mark.parametrize('name, file, spoil, says', FAULTS, ids=[f'{n}-{s}' for n,_,_,s in FAULTS])
def test_a_fault_is_one_line(name, file, spoil, says, one):
    d = one(name); spoil(d/file)
    assert says in line(name, d)

def test_a_missing_folder_or_name_is_one_line(tmp_path):
    assert 'missing' in line('pcam', tmp_path/'none') and 'the sets are' in line('mnist', tmp_path)
    (tmp_path/'empty').mkdir()
    assert 'labelled 0, 1' in line('pcam', tmp_path/'empty')

def test_broken_images_are_listed_with_the_reason(one):
    d = one('bach'); files = sorted((d/'Photos/Normal').iterdir())
    files[0].write_bytes(b''); files[1].write_bytes(files[1].read_bytes()[:3000]); files[2].write_text('no image')
    df = S.read_set('bach', d)
    images, bad = S.read_images(df, 32)
    at = [i for i,p in enumerate(df.path) if '/Normal/' in p][:3]
    assert sorted(bad)==at and all('\n' not in r and r for r in bad.values()) and not images[at].any() and images[at[-1]+1].any()

def test_unusual_images_are_read(tmp_path):
    files = dict(grey=Image.fromarray(patch(1, 0)).convert('L'), alpha=Image.fromarray(patch(1, 0)).convert('RGBA'),
                 wide=Image.fromarray(np.concatenate([patch(1, 0)]*2, 1)), tiny=Image.fromarray(patch(1, 0, 5)))
    for n,im in files.items(): im.save(tmp_path/f'{n}.png')
    images, bad = S.read_images(pd.DataFrame(dict(path=[str(tmp_path/f'{n}.png') for n in files], item=-1)), 48)
    assert not bad and images.shape==(4,48,48,3)

def test_rows_of_an_h5_in_any_order(made):
    df = S.read_set('pcam', made/'pcam')
    want, _ = S.read_images(df, 32)
    order = np.random.default_rng(0).integers(0, len(df), 40)
    got, bad = S.read_images(df.iloc[order], 32)
    assert bad=={} and (got==want[order]).all()
    got, bad = S.read_images(df.iloc[:2].assign(item=[0, 99]), 32)
    assert set(bad)=={0,1} and 'out of range' in bad[1]

def test_features_come_back_as_written(made, tmp_path):
    df = S.read_set('sicapv2', made/'sicapv2')
    f = np.random.default_rng(0).normal(size=(len(df), 7)).astype(np.float32)
    a = S.write_features(tmp_path, 'clip', df, f, hash='x', px=112)
    first = a.read_bytes(); S.write_features(tmp_path, 'clip', df, f, hash='x', px=112)
    assert a.read_bytes()==first
    back, g = S.read_features(tmp_path, 'clip', 'sicapv2')
    assert (f==g).all() and back.attrs==df.attrs
    pd.testing.assert_frame_equal(back[list(df)], df)
    images, bad = S.read_images(back, 16)
    assert not bad
    a.write_bytes(first[:500])
    with pytest.raises(PathgenError, match='run the stage zeroshot again'): S.read_features(tmp_path, 'clip', 'sicapv2')

def test_prompts_stay_within_clips_tokens():
    from pathgen.clip import CONTEXT, count_tokens
    texts = [t.format(n) for t in S.MORE_TEMPLATES+S.TEMPLATES for c in S.PROMPTS.values() for ns in c.values() for n in ns]
    texts += [t.format(w) for t in S.TEMPLATES for c in S.CLASSES.values() for w in c.values()]
    assert max(map(count_tokens, set(texts))) <= CONTEXT
    for s,c in S.PROMPTS.items():
        for j in range(5): assert len(set(S.column(s, c, j)))==len(c), f'{s}: two classes share a name'

def test_histogram_counts_pixels():
    im = np.zeros((2,4,4,3), np.uint8); im[1,:2] = 255; im[1,2:] = (255,0,32)
    h = S.colour_histogram(im)
    assert h.shape==(2,512) and h[0,0]==1 and h[1,511]==.5 and h[1,7*64+1]==.5
    assert S.colour_histogram(np.zeros((0,4,4,3), np.uint8)).shape==(0,512)

@pytest.mark.parametrize('seed', range(3))
def test_groups_stay_together_where_they_can(made, seed):
    df = S.read_set('lc_lung', made/'lc25000')
    s = S.split_set(df, seed, .0, .5)
    assert s.groupby('group').split.nunique().max()==1 and s.attrs['split_by']=={'test': 'group'}
    assert S.split_set(df, seed, .0, .5).equals(s)

def test_few_groups_fall_back_to_images_and_say_so(made):
    df = S.read_set('lc_lung', made/'lc25000')
    df = df.assign(group=df.label); df.attrs['x'] = 1
    s = S.split_set(df, 0, .25, .25)
    assert s.attrs['split_by']==dict(test='image', val='image') and s.attrs['x']==1
    assert (pd.crosstab(s.label, s.split)==pd.DataFrame(dict(test=1, train=2, val=1), index=sorted(set(df.label)))).all().all()

def test_real_samples_are_read(real):
    p = real/'patches'
    lung, colon = S.read_set('lc_lung', p/'lc25000'), S.read_set('lc_colon', p/'lc25000')
    assert (len(lung), len(colon))==(900, 600) and lung.group.ne('').all() and 200 < lung.group.nunique() < 400
    s = S.split_set(lung, 0, .1, .2)
    assert s.groupby('group').split.nunique().max()==1 and s.attrs['split_by']==dict(test='group', val='group')
    assert (pd.crosstab(s.label, s.split, normalize='index').test-.2).abs().max() < .02
    crc, osteo = S.read_set('crc100k', p/'crc_val_he_7k'), S.read_set('osteo', p/'osteo')
    assert len(crc)==16 and set(crc.split)=={'all'}
    assert len(osteo)==21 and set(osteo.group)=={'Case-3','Case-4','Case-48','P9'}
    assert S.split_set(osteo, 0, 0, .25).attrs['split_by']=={'test': 'group'}
    for df in (crc, osteo, lung.head(8)):
        images, bad = S.read_images(df, 112)
        assert not bad and images.std((1,2,3)).min() > 3

def touch(root, *names):
    for n in names:
        (root/n).parent.mkdir(parents=True, exist_ok=True)
        (root/n).touch()

def camelyon16(root, today=False):
    "Nine slides as in 2016, or as they are laid out today, with masks beside them."
    places = dict(normal="images", tumor="images", test="images") if today else dict(normal="training/normal", tumor="training/tumor", test="testing/images")
    for stem,n in dict(normal=3, tumor=3, test=3).items(): touch(root, *(f"{places[stem]}/{stem}_{k:03d}.tif" for k in range(1, n+1)))
    touch(root, "masks/tumor_001_mask.tif", "annotations/tumor_001.xml", "training/lesion_annotations/tumor_001.xml")
    sheet = root/("evaluation/reference.csv" if today else "testing/reference.csv")
    sheet.parent.mkdir(exist_ok=True)
    sheet.write_text("image,class,type,size\n"*today + "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\ntest_003.tif,tumor,Other,Micro\n")
    return sheet

def camelyon17(root, today=False, patients=(0,1,2,20,21,40,60,80)):
    stages, rows = S.SLIDE_CLASSES["camelyon17"], ["patient,stage"]
    for p in patients:
        rows.append(f"patient_{p:03d}.zip,pN1")
        for n in range(5):
            touch(root, f"images/patient_{p:03d}_node_{n}.tif" if today else f"training/center_{p//20}/patient_{p:03d}_node_{n}.tif")
            rows.append(f"patient_{p:03d}_node_{n}.tif,{stages[n%4]}")
    touch(root, "masks/patient_000_node_4_mask.tif", "testing/patient_100_node_0.tif")
    sheet = root/("stage_labels.csv" if today else "training/stage_labels.csv")
    sheet.write_text("\n".join(rows))
    return sheet

def bracs(root, rows=None):
    groups = dict(BT=("N","PB","UDH"), AT=("FEA","ADH"), MT=("DCIS","IC"))
    made = []
    for part,split in dict(train="Training", val="Validation", test="Testing").items():
        for g,t in ((g,t) for g,ts in groups.items() for t in ts):
            sid = f"BRACS_{len(made)+1}"
            touch(root, f"BRACS_WSI/{part}/Group_{g}/Type_{t}/{sid}.svs")
            made.append({"WSI Filename":sid, "Patient Id":len(made)//2, "RoI":3, "WSI label":t, "Set":split})
    S.write_xlsx(pd.DataFrame(made if rows is None else rows(made)), root/"BRACS.xlsx", "WSI_Information")
    return root/"BRACS.xlsx"

def slide_line(name, root, split=False):
    with pytest.raises(PathgenError) as e:
        df = S.read_slide_set(name, root)
        if split: S.split_slides(df, .1, 0)
    assert '\n' not in str(e.value)
    return str(e.value)

@pytest.mark.parametrize('today', [False, True])
def test_camelyon_is_read_as_it_was_and_as_it_is_laid_out(today, tmp_path):
    camelyon16(tmp_path/"a", today)
    df = S.read_slide_set("camelyon16", tmp_path/"a").set_index("slide_id")
    assert df.label.to_dict()=={**{f"{s}_{k:03d}":s for s in ("normal","tumor") for k in (1,2,3)}, "test_001":"tumor", "test_002":"normal", "test_003":"tumor"}
    assert df.split.to_dict()=={i:"test"*i.startswith("test") for i in df.index} and not df.attrs["standin"]
    camelyon17(tmp_path/"b", today)
    df = S.read_slide_set("camelyon17", tmp_path/"b")
    assert list(df)==["slide_id","path","patient_id","label","split"] and len(df)==40 and df.path.map(lambda p: Path(p).is_file()).all()
    assert set(df[df.split=="test"].patient_id)=={"patient_060","patient_080"} and set(df.split)=={"","test"}
    assert df.label[:5].tolist()==["negative","itc","micro","macro","negative"]

def test_bracs_has_its_published_split_and_three_classes(tmp_path):
    bracs(tmp_path, lambda rows: [r | {"WSI Filename":f"{r['WSI Filename']}.svs"} for r in rows])
    df = S.read_slide_set("bracs", tmp_path)
    assert df.groupby("split").label.apply(lambda l: sorted(l)).to_dict()=={s:["atypical"]*2+["benign"]*3+["malignant"]*2 for s in ("train","val","test")}
    assert df.set_index("slide_id").patient_id["BRACS_5"]=="2" and S.split_slides(df, .1, 0).equals(df)

def test_slides_are_split_by_patient_with_every_class_in_validation(tmp_path):
    camelyon17(tmp_path, patients=[*range(20), *range(20,26), 60, 80])
    df = S.read_slide_set("camelyon17", tmp_path)
    out = S.split_slides(df, .1, 0)
    assert (out.groupby("patient_id").split.nunique()==1).all() and out.attrs==df.attrs
    assert out[out.split=="val"].label.nunique()==4 and abs((out.split=="val").sum()/(df.split=="").sum()-.1) < .04
    assert (out.split[df.split=="test"]=="test").all() and S.split_slides(df, .1, 0).equals(out)
    assert any(not S.split_slides(df, .1, s).equals(out) for s in (1,2,3))

def test_faults_of_slide_sets_are_said_in_one_line(tmp_path):
    assert "holds no slide such as normal_001.tif" in slide_line("camelyon16", tmp_path)
    assert "labels.csv is missing, and camelyon is no published set (camelyon16, camelyon17, bracs)" in slide_line("camelyon", tmp_path)
    camelyon16(tmp_path/"a").unlink()
    assert "reference.csv is missing: fetch the published labels" in slide_line("camelyon16", tmp_path/"a")
    sheet = camelyon16(tmp_path/"a")
    sheet.write_text("test_001,Tumor\n")
    assert "lacks 2 of 3 slides, such as test_002" in slide_line("camelyon16", tmp_path/"a")
    sheet.write_text("test_001,Tumor\ntest_001,Normal\ntest_002,Normal\ntest_003,Normal\n")
    assert "lists 1 slides twice, such as test_001: keep one row of each" in slide_line("camelyon16", tmp_path/"a")
    sheet.write_text("test_001,Tumor\ntest_002,Normal\ntest_003,Normal\ntest_004,Normal\n")
    assert "lists 1 slides that are not there, such as test_004: fetch them" in slide_line("camelyon16", tmp_path/"a")
    sheet.write_text("test_001,Tumor\ntest_002,Healthy\ntest_003,\n")
    assert "has 2 unknown labels, such as 'healthy' of test_002: they are normal, tumor" in slide_line("camelyon16", tmp_path/"a")
    camelyon16(tmp_path/"a")
    touch(tmp_path/"a", "images/tumor_001.tif")
    assert "holds tumor_001 twice" in slide_line("camelyon16", tmp_path/"a")

def test_faults_of_the_sheets_are_said_in_one_line(tmp_path):
    camelyon17(tmp_path/"b").write_text("slide,stage\n")
    assert "lacks the column patient" in slide_line("camelyon17", tmp_path/"b")
    bracs(tmp_path/"c", lambda rows: [r | {"Set":"Held out"} if r["WSI Filename"]=="BRACS_3" else r for r in rows])
    assert "'held out' of bracs_3: they are training, validation, testing" in slide_line("bracs", tmp_path/"c")
    S.write_xlsx(pd.DataFrame(dict(a=[1])), tmp_path/"c/BRACS.xlsx")
    assert "BRACS.xlsx cannot be read" in slide_line("bracs", tmp_path/"c")
    (tmp_path/"c/BRACS.xlsx").unlink()
    assert "BRACS.xlsx is missing" in slide_line("bracs", tmp_path/"c")

def test_a_part_without_a_class_is_refused(tmp_path):
    camelyon17(tmp_path/"b", patients=[0,20,40])
    assert "no slide of the class negative is for test" in slide_line("camelyon17", tmp_path/"b", split=True)
    camelyon17(tmp_path/"d", patients=[0,60])
    assert "no choice of patients leaves every class both in training and in validation" in slide_line("camelyon17", tmp_path/"d", split=True)

OWN = [f"s{i:02d}.ndpi,{'Sick' if i//3%2 else 'Well'},P{i//3},{'test' if i >= 18 else 'train'}" for i in range(36)]

def own(root, columns="slide_id,label,patient_id,split", lines=OWN):
    touch(root, *(f"{'old' if i%2 else 'new'}/s{i:02d}.{'svs' if i%3 else 'ndpi'}" for i in range(36)))
    at = ["slide_id,label,patient_id,split".split(",").index(c) for c in columns.split(",")]
    (root/"labels.csv").write_text("\n".join([columns, *(",".join(l.split(",")[j] for j in at) for l in lines)]))
    return S.read_slide_set("mine", root)

@pytest.mark.parametrize("columns,patients,parts", [("slide_id,label,patient_id,split",12,{"","test"}), ("label,slide_id,patient_id",12,{"all"}), ("slide_id,label",36,{"all"}), ("slide_id,label,split",36,{"","test"})])
def test_a_set_of_ones_own(tmp_path, columns, patients, parts):
    df = own(tmp_path, columns)
    assert df.slide_id.tolist()==[f"s{i:02d}" for i in range(36)] and df.patient_id.nunique()==patients and set(df.split)==parts
    assert df.label[:6].tolist()==["Well"]*3+["Sick"]*3 and df.attrs==dict(name="mine", title="mine", standin=False, classes=["Sick","Well"])
    assert df.path.map(lambda p: Path(p).is_file()).all()
    out = S.split_slides(df, .25, 0, .3)
    assert (out.groupby("patient_id").split.nunique()==1).all() and out.groupby("split").label.nunique().to_dict()==dict(test=2, train=2, val=2)
    assert S.split_slides(df, .25, 0, .3).equals(out) and (out.split[df.split=="test"]=="test").all()
    out.to_csv(tmp_path/"labels.csv", index=False)
    assert S.read_slide_set("mine", tmp_path).equals(out), "what is written can be read again"

@pytest.mark.parametrize("lines,why", [
    (OWN[:-2], "labels.csv lacks 2 of 36 slides, such as s34"), ([*OWN,OWN[3]], "lists 1 slides twice, such as s03"), ([*OWN,"s99,Well,Q,train"], "slides that are not there, such as s99"),
    ([OWN[0].replace("Well",""),*OWN[1:]], "has 1 unknown labels, such as '' of s00: they are well, sick"), ([OWN[0].replace("train","validate"),*OWN[1:]], "'validate' of s00: they are train, val, test"),
    ([*OWN[:17],OWN[17].replace("P5","P6"),*OWN[18:]], "puts the patient P6 into test and train: keep all slides of a patient in one part"),
    ([l.replace("Sick,P","Well,P") if ",test" in l else l for l in OWN], "no slide of the class Sick is for test"),
    ([l.replace("train","val" if "Well" in l else "train") for l in OWN], "no slide of the class Well is for train")])
def test_faults_of_a_set_of_ones_own_are_said_in_one_line(tmp_path, lines, why):
    with pytest.raises(PathgenError) as e: S.split_slides(own(tmp_path, lines=lines), .25, 0)
    assert why in str(e.value) and "\n" not in str(e.value)

def test_a_label_file_without_labels(tmp_path):
    with pytest.raises(PathgenError, match="lacks the column label"): own(tmp_path, "slide_id")

def test_the_names_of_slide_classes_go_together():
    for name,classes in S.SLIDE_CLASSES.items():
        assert list(S.SLIDE_PROMPTS[name])==classes and {len(v) for v in S.SLIDE_PROMPTS[name].values()}=={5}
