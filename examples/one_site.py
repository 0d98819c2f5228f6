"""One site, from head scans to a report: python one_site.py BIDS_DIR OUT [--reference control]."""

import argparse

import hypodask
from hypodask import report, stats


def main() -> None:
    """Process the study, find outliers, adjust for head size, compare the groups, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", help="BIDS folder with T1w scans and a participants.tsv that has a column 'group'")
    parser.add_argument("out", help="folder or URL for the results; run again to do only what is missing")
    parser.add_argument("--reference", default="control", help="group that the others are compared with")
    arguments = parser.parse_args()

    cohort = hypodask.Cohort.from_bids(arguments.bids_dir)
    hypodask.process(cohort, arguments.out)

    results = hypodask.open_results(arguments.out)
    results = results.pipe(stats.find_outliers).pipe(stats.normalize_icv, reference=arguments.reference)
    table = stats.compare_groups(
        results, "normalized_volume_mm3", structure="hypothalamus", reference=arguments.reference
    )
    print(stats.list_exclusions(results).to_string(index=False))
    print(table[["group_a", "group_b", "n_a", "n_b", "difference", "percent", "p"]].to_string(index=False))
    print(report.write_report(arguments.out, reference=arguments.reference))


# Dask starts its workers as new processes, which import this file again: only the first may run main().
if __name__ == "__main__":
    main()
