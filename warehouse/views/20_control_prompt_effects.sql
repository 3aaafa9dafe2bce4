-- grain:   one row per run, model, concept, positions, layer, control and prompt
-- source:  control_scores, chosen_strengths
-- formula: effect = logit_diff_matching at +s minus at -s, with the s that the steering vector is judged at
-- caveat:  a control that was not scored at both signs of that s has no row
select
    control_scores.run,
    control_scores.model,
    control_scores.concept,
    control_scores.positions,
    control_scores.layer,
    control_scores.control,
    control_scores.prompt,
    max(control_scores.logit_diff_matching) filter (
        where control_scores.strength = chosen_strengths.strength
    )
    - max(control_scores.logit_diff_matching) filter (
        where control_scores.strength = -chosen_strengths.strength
    )
        as effect
from control_scores
inner join chosen_strengths
    on control_scores.run = chosen_strengths.run
    and control_scores.model = chosen_strengths.model
    and control_scores.concept = chosen_strengths.concept
    and control_scores.positions = chosen_strengths.positions
    and abs(control_scores.strength) = chosen_strengths.strength
group by
    control_scores.run,
    control_scores.model,
    control_scores.concept,
    control_scores.positions,
    control_scores.layer,
    control_scores.control,
    control_scores.prompt
having effect is not null
