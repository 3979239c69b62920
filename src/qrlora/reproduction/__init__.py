"""The paper's tables and figures, made anew on any base."""
