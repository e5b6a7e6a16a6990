"""The only room that speaks SQL. What leaves it are frozen values, never rows of an ORM."""
