-- steerability_by_method: one row per run, method and positions.
select
    run,
    method,
    positions,
    'grain' as violation,
    count(*) as num_rows
from steerability_by_method
group by run, method, positions
having count(*) > 1
