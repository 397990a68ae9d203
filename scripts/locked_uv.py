"""uv as uv.lock has it, for pip: `python locked_uv.py >uv.txt`, then `pip install --require-hashes -r uv.txt`."""

import tomllib

with open("uv.lock", "rb") as lock:
    uv = next(package for package in tomllib.load(lock)["package"] if package["name"] == "uv")
print(f"uv=={uv['version']}", *(f"--hash={wheel['hash']}" for wheel in uv["wheels"]))
