-- steerability_by_architecture: one row per run, architecture and positions.
select
    run,
    architecture,
    positions,
    'grain' as violation,
    count(*) as num_rows
from steerability_by_architecture
group by run, architecture, positions
having count(*) > 1
