"""APR: new images pushed to old classes' means, and statistics that follow the features' drift."""
