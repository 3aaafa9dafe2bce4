-- steerability_by_model: one row per run, model and positions.
select
    run,
    model,
    positions,
    'grain' as violation,
    count(*) as num_rows
from steerability_by_model
group by run, model, positions
having count(*) > 1
