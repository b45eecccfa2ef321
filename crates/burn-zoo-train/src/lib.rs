//! Training on burn-train's learner: recipes, objectives, optimiser, resume.
