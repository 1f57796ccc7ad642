"""Where ip2p runs: plain processes on one machine (`local.py`), compose, Kubernetes, Terraform."""
