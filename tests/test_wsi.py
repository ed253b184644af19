"Reading slides: pixels as OpenSlide gives them, bounded files, and one line for every bad file."
import os, pickle, struct, subprocess, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
import numpy as np, pytest, tifffile
from conftest import ROOT
from pathgen import wsi
from pathgen.wsi import SlideError, open_slide

APERIO = "Aperio Image Library v12.0.15 \r\n{w}x{h} (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"

def painted(n=900, seed=0):
    "Smooth colours with nuclei, `n` x `n` + 60."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:n, :n+60]/n
    im = np.stack([200+40*np.sin(9*x), 150+60*np.cos(7*y), 190+50*np.sin(5*x*y)], -1)
    for cy,cx in rng.integers(10, n-10, (200, 2)): im[cy-4:cy+4, cx-4:cx+4] = [90,60,140]
    return im.clip(0, 255).astype(np.uint8)

def write(path, im, desc=APERIO, levels=(1,4), jpeg=True, **kw):
    h,w = im.shape[:2]
    with tifffile.TiffWriter(path) as t:
        for d in levels:
            a = im[:h//d*d, :w//d*d].reshape(h//d, d, w//d, d, -1).mean((1, 3)).astype(im.dtype)
            t.write(a, **(dict(tile=(256,256), compression="jpeg" if jpeg else None, metadata=None, photometric="rgb",
                               description=desc.format(w=w, h=h)) | kw))
    return path

@pytest.fixture(scope="module")
def svs(tmp_path_factory): return write(tmp_path_factory.mktemp("wsi")/"a slide.svs", painted())

def want(path, level=0):
    import openslide
    o = openslide.OpenSlide(path)
    return wsi.over_white(np.asarray(o.read_region((0,0), level, o.level_dimensions[level])))

@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "boxes.tiff", "small.svs"])
def test_pixels_of_real_slides_equal_openslide(real, name):
    with open_slide(real/"slides"/name) as s:
        for level,(w,h) in enumerate(s.level_sizes):
            np.testing.assert_array_equal(wsi.region(s, level, 0, 0, w, h), want(s.path, level))

def test_real_metadata(real):
    a, b = (open_slide(real/"slides"/n) for n in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"))
    assert (a.mpp, a.mpp_from, a.objective_power, a.reader, len(a.level_sizes)) == (.499, "metadata", 20, "jpeg tiles", 1)
    assert (b.mpp, b.mpp_from, b.objective_power, b.reader) == (None, "missing", None, "openslide")
    assert open_slide(real/"slides/boxes.tiff").mpp is None, "72 dots per inch is no microscope's scale"

@pytest.mark.parametrize("power, is_", [("20", 20), ("nan", None), ("-1", None), ("0", None), ("1e9", None), ("x", None)])
def test_a_magnification_that_cannot_be_true_is_none(power, is_):
    assert wsi.magnification({"openslide.objective-power": power})==is_

class Illegible(dict):
    def __getitem__(self, k): return super().__getitem__(k) if k=="good" else bytes([255]).decode()

def test_metadata_that_cannot_be_read_are_left_out():
    assert wsi.properties(SimpleNamespace(properties=Illegible(bad="", good="1")))=={"good": "1"}

@pytest.mark.parametrize("name", ["broken.svs", "unopenable.tiff", "unreadable.svs"])
def test_bad_real_slides_are_named(real, name):
    with pytest.raises(SlideError) as e: open_slide(real/"slides_bad"/name).check()
    assert name in str(e.value) and "\n" not in str(e.value)

@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("desc", [APERIO, "plain"])
def test_quick_path_equals_openslide(tmp_path, photometric, desc):
    p = write(tmp_path/"x.svs", painted(), desc, photometric=photometric)
    with open_slide(p) as s:
        assert s.reader=="jpeg tiles"
        for level,(w,h) in enumerate(s.level_sizes):
            np.testing.assert_array_equal(wsi.region(s, level, 0, 0, w, h), want(p, level))

def test_rgb_jpeg_without_marker(tmp_path):
    "Aperio stores RGB channels as they are and says so in the tag alone; both tags are tried on one file."
    import imagecodecs
    im = painted(512)[:256, :256]
    tile = imagecodecs.jpeg8_encode(im, level=95, colorspace="RGB", outcolorspace="RGB")
    i = tile.find(b"\xff\xee")
    if i > 0: tile = tile[:i] + tile[i+2+struct.unpack(">H", tile[i+2:i+4])[0]:]
    p = tmp_path/"rgb.svs"
    with tifffile.TiffWriter(p) as t:
        t.write(iter([tile]), shape=(256,256,3), dtype=np.uint8, tile=(256,256), compression="jpeg", photometric="rgb",
                description=APERIO.format(w=256, h=256), metadata=None)
    with tifffile.TiffFile(p) as t: at, found = t.pages[0].tags["PhotometricInterpretation"].valueoffset, int(t.pages[0].photometric)
    if found!=2:
        data = bytearray(p.read_bytes()); data[at:at+2] = struct.pack("<H", 2); p.write_bytes(data)
    with open_slide(p) as s:
        assert s.levels[0].colour=="RGB"
        got = wsi.region(s, 0, 0, 0, 256, 256)
    assert np.abs(got.astype(int) - im).mean() < 6
    np.testing.assert_array_equal(got, want(p))

def test_read_many_equals_read_and_decodes_once(svs, monkeypatch):
    made, decode = [], wsi.decode_tile
    monkeypatch.setattr(wsi, "decode_tile", lambda t, i, raw, k=1: made.append((i, k)) or decode(t, i, raw, k))
    with open_slide(svs) as s:
        xy = [(x,y) for y in range(0, 700, 200) for x in range(0, 800, 200)]
        many = list(s.read_many(xy, 200, 100, threads=3))
        assert sorted(made)==sorted(set(made)) and len(made)==16 and {k for _,k in made}=={2}
        for c,im in zip(xy, many): assert np.abs(im.astype(int) - s.read(*c, 200, 100)).mean() < 1
        for c,im in zip(xy, s.read_many(xy, 200)): np.testing.assert_array_equal(im, s.read(*c, 200))

@pytest.mark.parametrize("px, out, k", [(200,200,1), (200,150,1), (200,90,1), (192,32,2), (200,50,4), (400,50,8), (201,67,1)])
def test_tiles_are_reduced_as_far_as_the_patch_allows(svs, px, out, k):
    with open_slide(svs) as s:
        assert wsi.tile_scale(wsi.Cut(0, 1., px, out), s.levels[0], [(0,0), (2*px,px)])==k
        for xy,im in zip([(0,0), (2*px,px)], s.read_many([(0,0), (2*px,px)], px, out)):
            assert im.shape==(out,out,3) and np.abs(im.astype(int) - s.read(*xy, px, out)).mean() < 2

def test_cache_is_bounded(svs):
    with open_slide(svs) as s:
        xy = [(x,y) for y in range(0, 800, 50) for x in range(0, 800, 50)]
        jobs = list(wsi.tile_jobs(s.levels[0], wsi.cut(s, 100), xy, 1, 1))
        assert sum(len(own) for own,_ in jobs) > 16, "a bound of 1 MiB holds five tiles, so some are decoded again"
        for c,im in zip(xy, s.read_many(xy, 100, threads=2, cache_mb=1)): np.testing.assert_array_equal(im, s.read(*c, 100))

def test_scattered_far_and_outside(svs):
    with open_slide(svs) as s:
        xy = [(5000,5000), (-90,-90), (800,850), (0,0), (950,0)]
        ims = list(s.read_many(xy, 100, 50))
        assert (ims[0]==255).all() and (ims[1][:45,:45]==255).all() and not (ims[3]==255).all()

def test_area_average(svs):
    with open_slide(svs) as s:
        full = s.read(120, 240, 336).astype(float)
        np.testing.assert_allclose(s.read(120, 240, 336, 168), full.reshape(168,2,168,2,3).mean((1,3)), atol=.51)
        assert s.read(120, 240, 300, 130).shape==(130,130,3)

@pytest.mark.parametrize("d", [1, 3, 4, 7.3, 16, 50])
def test_thumbnail_covers_the_slide(svs, d):
    with open_slide(svs) as s:
        t = s.thumbnail(d)
        assert t.shape==(-(-900//d), -(-960//d), 3)
        if d==16: assert np.abs(t[:56] - want(svs)[:896].reshape(56,16,60,16,3).mean((1,3))).mean() < 2

def test_single_level_thumbnail(tmp_path):
    p = write(tmp_path/"one.svs", painted(), levels=(1,))
    np.testing.assert_allclose(open_slide(p).thumbnail(10)[:90,:96], want(p).reshape(90,10,96,10,3).mean((1,3)), atol=1)

def test_handles_are_bounded(tmp_path, monkeypatch):
    few = wsi.Handles(4)
    monkeypatch.setattr(wsi, "handles", few)
    slides = [open_slide(write(tmp_path/f"{i}.svs", painted(300, i))) for i in range(8)]
    for _ in range(2):
        for s in slides: s.read(0, 0, 64)
    assert len(few.held) <= 4
    with ThreadPoolExecutor(6) as pool: assert len(list(pool.map(lambda s: s.read(10, 10, 200), slides*4)))==32
    slides[0].close()
    assert not [k for k in few.held if k[2]==slides[0].path]

def corner(slide): return slide.read(100, 100, 50)

def test_processes(svs):
    s = open_slide(svs, mpp=.3)
    assert pickle.loads(pickle.dumps(s)).mpp_from=="override"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool: got = pool.submit(corner, s).result()
    np.testing.assert_array_equal(got, corner(s))

def fails(path):
    "The line that a bad slide ends in."
    with pytest.raises(SlideError) as e:
        with open_slide(path) as s:
            s.check()
            s.thumbnail(4)
            for _ in s.read_many([(0,0),(300,300)], 256): pass
    line = str(e.value)
    assert "\n" not in line and path.name[:60] in line and ";" in line
    return line

def test_not_slides(tmp_path):
    for name,data,why in (("text.svs", b"no slide", "not a slide that OpenSlide can read"), ("empty.svs", b"", "the file is empty; copy it again"),
                          ("png.tif", b"\x89PNG\r\n\x1a\n"+b"0"*500, "not a slide that OpenSlide can read"), ("cut.svs", b"II*\0"+b"0"*500, "a TIFF that OpenSlide cannot read")):
        (tmp_path/name).write_bytes(data)
        assert why in fails(tmp_path/name)
    (tmp_path/"loop.svs").symlink_to(tmp_path/"loop.svs")
    for p,why in ((tmp_path/"loop.svs", "no such file"), (tmp_path/"absent.svs", "no such file"), (tmp_path, "a folder")): assert f"{p.name}: {why}; check slides.folder" in fails(p)

def test_odd_names(tmp_path):
    for name in ("with space.svs", "größe 🔬.svs", "x"*250 + ".svs"):
        assert open_slide(write(tmp_path/name, painted(300))).width==360

def put_tag(path, tag, value, page=0):
    "Overwrite the value of a tag in place."
    with tifffile.TiffFile(path) as t:
        g = t.pages[page].tags[tag]
        at, code = g.valueoffset, {3:"H", 4:"I", 16:"Q"}[int(g.dtype)]
    data = bytearray(path.read_bytes())
    v = struct.pack("<"+code, value)
    data[at:at+len(v)] = v
    path.write_bytes(data)

@pytest.mark.parametrize("tag,value", [("ImageWidth", 10_000_000), ("ImageLength", 10_000_000), ("TileWidth", 65520)])
def test_absurd_headers(tmp_path, tag, value):
    p = write(tmp_path/"huge.svs", painted(300), levels=(1,), tile=(256,256))
    with tifffile.TiffFile(p) as t: dtype = int(t.pages[0].tags[tag].dtype)
    put_tag(p, tag, min(value, 65520 if dtype==3 else value))
    fails(p)

def test_a_header_of_ten_million_pixels_is_not_believed(tmp_path):
    for size in ((10**7,10**7), (10**6 + 1,9), (9,0)):
        with pytest.raises(SlideError, match="a.svs: its header promises"): wsi.check_sizes("a.svs", {}, [(9,9), size])
    p = write(tmp_path/"huge.svs", painted(300), levels=(1,))
    for tag in ("ImageWidth", "ImageLength"): put_tag(p, tag, 10**7)
    fails(p)

def test_a_name_the_system_cannot_take_is_named():
    with pytest.raises(SlideError, match="File name too long; rename"): open_slide("x"*300 + ".svs")

@pytest.mark.parametrize("n", [0, 9, 100, 5000])
def test_what_tifffile_cannot_read_is_left_to_openslide(svs, tmp_path, n):
    (tmp_path/"cut.svs").write_bytes(svs.read_bytes()[:n])
    assert wsi.tile_levels(tmp_path/"cut.svs", [(960,900)])==[None]

def test_a_slide_that_only_openslide_can_read_is_checked_all_the_same(svs, monkeypatch):
    def refuse(*a): raise ValueError("not a TIFF that I know")
    monkeypatch.setattr(tifffile, "TiffFile", refuse)
    with open_slide(svs) as s:
        s.check()
        assert s.reader=="openslide" and wsi.blank_tiles(s) is None

def test_tiles_too_long_to_decode_are_refused(tmp_path):
    p = write(tmp_path/"wide.tif", np.zeros((32,9000,3), np.uint8), "plain", (1,), tile=(16,9008))
    with pytest.raises(SlideError, match="its tiles are 9008 px long; cut it"): open_slide(p)

def test_a_slide_that_may_not_be_read_is_named(svs, monkeypatch):
    monkeypatch.setattr(wsi.os, "access", lambda path, how: False)
    with pytest.raises(SlideError, match="may not be read; chmod"): open_slide(svs)

def test_tile_beyond_the_file(tmp_path):
    p = write(tmp_path/"far.svs", painted(250)[:, :250], levels=(1,))
    put_tag(p, "TileOffsets", 10**9)
    with tifffile.TiffFile(p) as t: assert wsi.tile_level(t.pages[0], p) is None, "the quick reader would ask for what is not there"
    fails(p)

def test_bomb(tmp_path):
    "A tile whose own header promises another size than the level's is refused before memory is taken."
    import imagecodecs
    bomb = imagecodecs.jpeg8_encode(np.zeros((8192,8192,3), np.uint8), level=50)
    p = tmp_path/"bomb.svs"
    with tifffile.TiffWriter(p) as t:
        t.write(iter([bomb]), shape=(256,256,3), dtype=np.uint8, tile=(256,256), compression="jpeg", photometric="ycbcr",
                description=APERIO.format(w=256, h=256), metadata=None)
    assert "damaged" in fails(p)

@pytest.mark.parametrize("shape", [(256,256), (256,256,4)])
def test_tiles_of_other_colours_than_the_tag_says_are_refused(tmp_path, shape):
    import imagecodecs
    tile = imagecodecs.jpeg8_encode(np.full(shape, 99, np.uint8))
    p = tmp_path/"odd.svs"
    with tifffile.TiffWriter(p) as t:
        t.write(iter([tile]), shape=(256,256,3), dtype=np.uint8, tile=(256,256), compression="jpeg", photometric="ycbcr",
                description=APERIO.format(w=256, h=256), metadata=None)
    assert "is damaged" in fails(p)

def test_loop_of_pages(tmp_path):
    p = write(tmp_path/"loop.svs", painted(300), levels=(1,1))
    data = bytearray(p.read_bytes())
    first = struct.unpack("<I", data[4:8])[0]
    n = struct.unpack("<H", data[first:first+2])[0]
    data[first+2+12*n:first+6+12*n] = struct.pack("<I", first)
    p.write_bytes(data)
    try: assert open_slide(p).read(0, 0, 64).shape==(64,64,3)
    except SlideError as e: assert "loop.svs" in str(e)

def test_of_pages_without_end_a_few_are_looked_at(tmp_path, monkeypatch):
    p, seen, level = write(tmp_path/"long.svs", painted(300)[:16,:16], levels=(1,)*90, tile=(16,16)), [], wsi.tile_level
    monkeypatch.setattr(wsi, "tile_level", lambda *a: seen.append(a) or level(*a))
    assert wsi.tile_levels(p, [(16,16)])[0] and len(seen)==64

@pytest.mark.parametrize("channels, how", [(3, dict(compression="lzw")), (3, dict(compression=None)), (1, dict(photometric="minisblack"))])
def test_other_tiles_are_left_to_openslide(tmp_path, channels, how):
    p = write(tmp_path/"other.tif", painted(300)[...,:channels], "plain", (1,), **how)
    with open_slide(p) as s:
        assert s.reader=="openslide"
        np.testing.assert_array_equal(wsi.region(s, 0, 0, 0, *s.level_sizes[0]), want(p))

def test_tiles_of_four_channels_are_left_to_openslide(tmp_path):
    import imagecodecs
    p, tile = tmp_path/"four.tif", imagecodecs.jpeg8_encode(painted(300)[:256,:256])
    with tifffile.TiffWriter(p) as t: t.write(iter([tile]), shape=(256,256,4), dtype=np.uint8, tile=(256,256), compression="jpeg", photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    with tifffile.TiffFile(p) as t: assert wsi.tile_level(t.pages[0], p) is None and t.pages[0].samplesperpixel==4

def test_other_pixels(tmp_path):
    "Grey, 16 bit, four channels: read as OpenSlide reads them, or one line."
    im = painted(300)
    for name,a,kw in (("grey", im[...,:1], dict(photometric="minisblack")), ("deep", im.astype(np.uint16)*200, {}),
                      ("cmyk", np.concatenate([im, im[...,:1]], -1), dict(photometric="separated"))):
        p = write(tmp_path/f"{name}.tif", a, "plain", (1,), jpeg=False, **kw)
        try: assert open_slide(p).read(0, 0, 100).shape==(100,100,3)
        except SlideError as e: assert name in str(e)

def mutants(svs, n):
    "Copies of a slide that are cut or have some bytes changed."
    data, rng = svs.read_bytes(), np.random.default_rng(5)
    for k in range(10): yield data[:len(data)*k//10 + 3]
    for k in range(n):
        d = bytearray(data)
        where = rng.integers(0, len(d) if k%2 else min(2000, len(d)), int(rng.integers(1, 40)))
        for i in where: d[i] = rng.integers(256)
        yield bytes(d)

def tiny(tmp_path):
    "Nearly all of this file is header."
    return write(tmp_path/"tiny.svs", painted(300)[:16,:16], levels=(1,), tile=(16,16))

def test_mutants_end_in_a_slide_or_a_line(svs, tmp_path):
    import openslide
    good = bad = 0
    for k,data in enumerate([*mutants(svs, 60), *mutants(tiny(tmp_path), 60)]):
        p = tmp_path/f"m{k}.svs"
        p.write_bytes(data)
        try:
            with open_slide(p) as s:
                s.check()
                list(s.read_many([(0,0),(300,300)], 256))
            good += 1
        except SlideError as e:
            assert "\n" not in str(e) and p.name in str(e)
            bad += 1
    assert good and bad

def test_a_tile_that_openslide_cannot_read_does_not_spoil_the_others(tmp_path):
    p = write(tmp_path/"a.tif", painted(600)[:512,:512], "plain", (1,), compression="lzw")
    with tifffile.TiffFile(p) as t: at, n = t.pages[0].dataoffsets[3], t.pages[0].databytecounts[3]
    data = bytearray(p.read_bytes())
    data[at:at+n] = bytes([255])*n
    p.write_bytes(data)
    with open_slide(p) as s:
        assert s.reader=="openslide"
        with pytest.raises(SlideError, match="a.tif: reading at x=300, y=300 failed"): s.read(300, 300, 50)
        assert s.read(0, 0, 50).shape==(50,50,3)

def test_a_disk_that_fails_while_patches_are_read_is_one_line(svs, monkeypatch):
    def pread(*a): raise OSError(5, "Input/output error")
    with open_slide(svs) as s:
        monkeypatch.setattr(wsi.os, "pread", pread)
        with pytest.raises(SlideError, match="a slide.svs: Input/output error; leave it out"): list(s.read_many([(0,0),(300,300)], 256))

WAITING = """
import sys
from pathgen import wsi
def lack(*a): raise MemoryError
if sys.argv[2]!="damaged": setattr(wsi, sys.argv[2], lack)
with wsi.open_slide(sys.argv[1]) as s: list(s.read_many([(0,0),(20,20),(40,40),(60,60)], 100, threads=4))
"""

@pytest.mark.parametrize("what, error", [("damaged", "SlideError: a.svs: tile in row 0, column 0 is damaged"), ("decode_tile", "MemoryError"), ("read_tiles", "MemoryError")])
def test_a_tile_that_fails_lets_no_patch_wait_for_it(tmp_path, what, error):
    "In a process of its own, which would not end otherwise."
    p = write(tmp_path/"a.svs", painted(300))
    with tifffile.TiffFile(p) as t: at, n = t.pages[0].dataoffsets[0], t.pages[0].databytecounts[0]
    data = bytearray(p.read_bytes())
    if what=="damaged": data[at:at+n] = bytes(n)
    p.write_bytes(data)
    r = subprocess.run([sys.executable, "-c", WAITING, p, what], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert r.returncode==1 and error in r.stderr

def test_no_patch_is_smaller_than_a_pixel(svs):
    with open_slide(svs) as s:
        for px, out in ((0,None), (-5,None), (64,-1)):
            with pytest.raises(wsi.PathgenError, match="ask for 1 or more"): s.read(0, 0, px, out)

def test_a_line_about_a_slide_is_short_whatever_its_name_and_fault():
    line = str(wsi.slide_error("/" + "n"*250 + ".svs", "why "*500))
    assert line.startswith("n"*40 + "..." + "n"*13 + ".svs: why") and len(line.partition("; leave it out")[0]) < 230

def test_a_slide_that_may_not_be_opened_has_no_mark(svs, monkeypatch):
    def refuse(*a): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(wsi, "open", refuse, raising=False)
    assert wsi.file_mark(svs)==""
