-- steerability_by_concept: one row per run, concept and positions.
select
    run,
    concept,
    positions,
    'grain' as violation,
    count(*) as num_rows
from steerability_by_concept
group by run, concept, positions
having count(*) > 1
