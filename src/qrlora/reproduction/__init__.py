"""The paper's tables and figures (arXiv 2507.04599), reproduced on any base."""
