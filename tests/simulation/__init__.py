"""The deterministic simulation of the refund engine: `make simulate SEEDS=N FROM=S`.

One seed is one life of a small shop. Everything that the engine is made of is the product's own code: services,
mirror, webhooks, the client's judgement of answers, the database with its guards. Only what is random or slow in the
world is replaced: time, the network, the processes, the people. They meet in one scheduler that decides, by the seed
alone, who goes on next; a seed that fails fails again, to the last commit.

    scheduler.py   virtual time; actors that take turns; processes that are killed
    database/      SQLite in memory, where others come in between wherever they could, and commits may fail
    network.py     the client whose wire is simulated, and what happens to a request on its way
    weather.py     how bad a life is: which faults there are, and how often
    shop.py        Smartpay, our processes, people: what happens in a life
    rules.py       what has to hold after every step
    life.py        one life from its beginning to its end
    mutants.py     rules that are taken out of the product, to see the simulation notice
"""
