#!/bin/bash
#
# A run longer than any job may be, where requeueing is not allowed: jobs that follow one another,
# each of which resumes what the one before has saved at its time limit.
#
#     jobs/chain.sh 5 jobs/configs/grid.toml --run.dir runs/grid
#
# The first word is the number of jobs; a directory (--run.dir) is needed, for it is what they have
# in common. A job begins when the one before has left with 75 (interrupted) or was cut off; once one
# has finished, the others find a run that has reached its stop rule, and end at once. From the
# environment: SBATCH_OPTIONS, of each job; JOBS, the folder of train.sbatch.

set -eu

jobs=$1
shift
[[ " $* " == *" --run.dir"* ]] || { echo "chain: --run.dir is needed" >&2; exit 2; }
JOBS=${JOBS:-$(dirname "$0")}
previous=
for ((k = 1; k <= jobs; k++)); do
    # Word splitting of SBATCH_OPTIONS is meant.
    # shellcheck disable=SC2086
    previous=$(sbatch --parsable --no-requeue ${SBATCH_OPTIONS:-} \
        ${previous:+--dependency=afterany:$previous} "$JOBS/train.sbatch" "$@")
    echo "job $k of $jobs: $previous"
done
