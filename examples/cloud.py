"""A study on rented machines of a cloud, by Coiled or directly from Amazon.

    python cloud.py s3://BUCKET/bids s3://BUCKET/out --by coiled [--workers 20]
    python cloud.py s3://BUCKET/bids s3://BUCKET/out --by ec2 --image TAG --profile NAME --security-group ID

Coiled needs an account (``coiled login``) and copies this environment to the machines. Without it, an image with
hypodask and s3fs is started on EC2. ``--profile`` names the instance profile that lets machines into the bucket, so
that no key is sent. ``--security-group`` names a group that admits only your own address; the group that is made by
default shows the dashboard to the whole internet. The script needs ``pip install 'hypodask[cloud,s3]'`` and credentials
as the tools of the cloud read them.
"""

import argparse
from typing import Any

import coiled
from dask_cloudprovider.aws import EC2Cluster
from distributed import Client

import hypodask

MACHINE = "m6i.large"
"""One core, which Amazon counts as two, and 8 GiB: room for one scan at a time."""


def main() -> None:
    """Rent machines, process the study, give them back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", help="URL of a BIDS dataset that the machines can read")
    parser.add_argument("out", help="URL for the results; run again to do only what is missing")
    parser.add_argument("--by", choices=["coiled", "ec2"], required=True)
    parser.add_argument("--region", default="eu-central-1", help="where the bucket is: traffic within a region is free")
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--image", default="", help="container image, for ec2")
    parser.add_argument("--profile", default="", help="name of an instance profile, for ec2")
    parser.add_argument("--security-group", default="", help="of the machines, for ec2")
    arguments = parser.parse_args()

    if arguments.by == "coiled":
        machines = coiled.Cluster(**coiled_options(arguments.region, arguments.workers))
    else:
        if not (arguments.image and arguments.profile and arguments.security_group):
            parser.error("ec2 needs --image, --profile and --security-group")
        place = {"region": arguments.region, "security_groups": [arguments.security_group]}
        machines = EC2Cluster(**place, **ec2_options(arguments.workers, arguments.image, arguments.profile))
    with machines, Client(machines) as client:
        results = hypodask.process(hypodask.Cohort.from_bids(arguments.bids_dir), arguments.out, client)
    print(results["status"].to_series().value_counts().to_string())


def coiled_options(region: str, workers: int) -> dict[str, Any]:
    """One scan at a time on each machine; spot machines, because a lost scan is simply processed again."""
    return {
        "name": "hypodask",
        "region": region,
        "n_workers": workers,
        "worker_vm_types": [MACHINE],
        "worker_options": {"nthreads": 1},
        "spot_policy": "spot_with_fallback",
        "idle_timeout": "20 minutes",
    }


def ec2_options(workers: int, image: str, profile: str) -> dict[str, Any]:
    """The same on EC2; dask-cloudprovider makes TLS certificates for the run by itself."""
    return {
        "n_workers": workers,
        "instance_type": MACHINE,
        "docker_image": image,
        "iam_instance_profile": {"Name": profile},
        "worker_options": {"nthreads": 1},
        "security": True,
    }


if __name__ == "__main__":
    main()
