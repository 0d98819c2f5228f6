"""A study on Kubernetes: scans and results in an object store, workers in pods.

    python on_kubernetes.py s3://BUCKET/bids s3://BUCKET/out --image REGISTRY/hypodask:TAG --secret NAME [--workers 20]

The cluster needs Dask's operator (``helm install --repo https://helm.dask.org dask-kubernetes-operator``), an image
with hypodask and s3fs, and a secret whose entries are fsspec's variables: FSSPEC_S3_KEY, FSSPEC_S3_SECRET and, where
the store is not Amazon's, FSSPEC_S3_ENDPOINT_URL. Here it needs ``pip install 'hypodask[k8s,s3]'``, the same variables
and a kubeconfig. ``--show`` prints what would be created, and creates nothing.
"""

import argparse
import json
from typing import Any

from dask_kubernetes.operator import KubeCluster, make_cluster_spec
from distributed import Client

import hypodask

POD = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
"""One scan at a time on one core. There is no limit for the CPU, because it would only slow down short bursts."""


def main() -> None:
    """Process the study in pods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", help="URL of a BIDS dataset that the pods can read")
    parser.add_argument("out", help="URL for the results; run again to do only what is missing")
    parser.add_argument("--image", required=True)
    parser.add_argument("--secret", required=True, help="Kubernetes secret with the variables of the object store")
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--show", action="store_true", help="print the resource only")
    arguments = parser.parse_args()

    spec = cluster_spec(arguments.image, arguments.secret, arguments.workers)
    if arguments.show:
        print(json.dumps(spec, indent=2))
        return
    with KubeCluster(custom_cluster_spec=spec) as pods, Client(pods) as client:
        results = hypodask.process(hypodask.Cohort.from_bids(arguments.bids_dir), arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


def cluster_spec(image: str, secret: str, workers: int) -> dict[str, Any]:
    """The ``DaskCluster`` resource: credentials from a secret, and a scheduler that only the cluster's network sees."""
    spec: dict[str, Any] = make_cluster_spec("hypodask", image=image, n_workers=workers, resources=POD)
    worker = spec["spec"]["worker"]["spec"]["containers"][0]
    worker["envFrom"] = [{"secretRef": {"name": secret}}]
    worker["args"] += ["--nthreads", "1"]
    return spec


if __name__ == "__main__":
    main()
