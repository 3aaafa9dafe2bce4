-- grain:   one row per run, model, concept, layer and site
-- source:  vectors, models
-- formula: depth = layer / num_layers; relative_norm = norm / residual_norm; relative_error = standard_error /
--          norm; coherence_by_chance = 1 / num_pairs, what pairs of independent directions would give;
--          cosine_next_layer = cosine with the vector of layer + 1 at the same site
-- caveat:  at strength 1 a vector moves the residual stream by relative_norm of its length: effects of layers
--          whose relative_norm differs are not of one dose
select
    vectors.run,
    vectors.model,
    vectors.concept,
    vectors.layer,
    vectors.site,
    vectors.layer / models.num_layers as depth,
    vectors.norm,
    vectors.residual_norm,
    vectors.norm / nullif(vectors.residual_norm, 0) as relative_norm,
    vectors.standard_error / nullif(vectors.norm, 0) as relative_error,
    vectors.coherence,
    1 / vectors.num_pairs as coherence_by_chance,
    vectors.num_pairs,
    len(vectors.vector) as width,
    list_cosine_similarity(vectors.vector, above.vector)::double as cosine_next_layer
from vectors
left join vectors as above
    on vectors.run = above.run
    and vectors.model = above.model
    and vectors.concept = above.concept
    and vectors.site = above.site
    and vectors.layer + 1 = above.layer
left join models
    on vectors.run = models.run
    and vectors.model = models.model
