-- best_layer_draws: one row per run, model, concept, positions and draw;
-- every cell has its 1,000 draws.
select
    run,
    model,
    concept,
    positions,
    draw,
    'grain' as violation,
    count(*) as num_rows
from best_layer_draws
group by run, model, concept, positions, draw
having count(*) > 1
union all
select
    run,
    model,
    concept,
    positions,
    null::bigint as draw,
    'number of draws' as violation,
    count(*) as num_rows
from best_layer_draws
group by run, model, concept, positions
having count(*) <> 1000
