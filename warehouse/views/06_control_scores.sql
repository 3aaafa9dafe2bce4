-- grain:   one row per run, model, concept, control, prompt, layer, strength and positions
-- source:  stored_control_scores
-- formula: as in scores; control numbers the random vector that was steered with
-- caveat:  a random vector has the norm of the steering vector at its layer, and nothing else of it
select
    run,
    model,
    concept,
    control,
    prompt,
    matching,
    layer,
    strength,
    positions,
    logit_matching,
    logit_other,
    logsumexp,
    logit_matching::double - logit_other::double as logit_diff_matching,
    exp(logit_matching::double - logsumexp::double)
    + exp(logit_other::double - logsumexp::double) as choice_mass
from stored_control_scores
