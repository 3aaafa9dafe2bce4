-- grain:   one row per run, model, concept and positions
-- source:  strength_sums
-- formula: the strength s whose two signs are compared: 1 where both +1 and -1 were scored, else the largest
--          s for which both +s and -s were
-- caveat:  a cell that was scored on one side only has no row here, and so no effect
-- build:   once
with sided as (
    select
        run,
        model,
        concept,
        positions,
        abs(strength) as strength
    from strength_sums
    where strength <> 0
    group by run, model, concept, positions, abs(strength)
    having min(strength) < 0 and max(strength) > 0
)
select
    run,
    model,
    concept,
    positions,
    case when bool_or(strength = 1) then 1.0::double else max(strength) end as strength
from sided
group by run, model, concept, positions
