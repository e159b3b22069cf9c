"""One file per stage of dvc.yaml: read params, build, call, write."""
