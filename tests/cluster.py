"Four stages on a Ray cluster that is joined by its address, and one of whose processes is killed; runs in a tree with a finished run."
import os, shutil, subprocess, sys, threading, time, psutil, yaml
from importlib import import_module
os.environ |= dict(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0"*64)
hold = "import ray; print(ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False).address_info['gcs_address'], flush=True); input()"
for _ in range(4): # Ray gives its helpers 15 seconds to start, which a busy machine may exceed
    head = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if address := head.stdout.readline().strip(): break
shutil.copytree("data", "ray", ignore=shutil.ignore_patterns("phantom", "tiles", "features", "patches*", "text", "runs", "pairs"))
os.chdir("nbs")
params, killed = yaml.safe_load(open("../params.yaml")), []

def kill_one():
    "Kill the first process of the cluster that works on `embed`."
    mine = lambda: [p for p in psutil.Process(head.pid).children(recursive=True) if "ray::_on_cluster" in " ".join(p.cmdline())]
    while not os.path.exists("../ray/features/.tmp") or not os.listdir("../ray/features/.tmp"): time.sleep(.02)
    killed.extend(mine()[:1])
    killed[0].kill()

threading.Thread(target=kill_one, daemon=True).start()
for stage in "tile embed select describe".split():
    run = getattr(import_module(f"pathgen.{stage}"), f"run_{stage}")
    base = dict(data="../ray", engine=address, workers=2 if stage in ("tile", "embed") else 1, max_failed=0, item_minutes=5, item_gb=8)
    if stage in ("select", "describe"): base["seed"] = params["base"]["seed"]
    if stage in ("embed", "select"): base["device"] = "cpu"
    run(**base, **params[stage])
    print(stage, flush=True)
print("killed", len(killed))
head.communicate("")
