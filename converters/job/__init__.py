"""A conversion as a job: what it will do, its journal, and how it resumes."""
