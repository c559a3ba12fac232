"""Sixty things that a freelancer's memory may hold, each with a question that asks for it in other words.

In English, German, French and Italian. The recall bench and a test search all of them for the answer to each.
"""

from __future__ import annotations

from typing import Final

# (what is remembered, the question)
PARAPHRASES: Final[list[tuple[str, str]]] = [
    # English
    ("Invoices are sent on the last working day of the month.", "When do I bill my clients?"),
    ("The hourly rate is 95 euros, 110 for rush jobs.", "How much do I charge?"),
    ("Marta from Tidewater prefers a phone call over mail.", "What is the best way to reach Tidewater?"),
    ("No meetings before ten in the morning.", "Is it all right to schedule something at 8:30?"),
    ("The old laptop was replaced by a ThinkPad in May.", "Which computer do I work on?"),
    (
        "Harbour Café wants warm colours and no stock photos.",
        "What did the coffee shop say about the look of its site?",
    ),
    ("Lindqvist pays late, usually after the second reminder.", "Which customer is slow with money?"),
    ("Backups run to the disk in the cellar every night.", "Where are copies of my files kept?"),
    (
        "The accountant needs all receipts by the tenth of January.",
        "What is the deadline for the tax papers?",
    ),
    ("Holidays this year are in the first two weeks of August.", "When will I be away in summer?"),
    ("Fridays are kept free for learning and the own website.", "On which day do I not work for customers?"),
    ("Anna takes over support while I am ill.", "Who stands in for me when I am sick?"),
    ("The studio's lease ends in March 2028.", "How long can I stay in my office?"),
    (
        "Proposals above 10,000 euros need a deposit of a third.",
        "Do I ask for money up front on big projects?",
    ),
    ("Do not use exclamation marks in texts for Lindqvist.", "How should the copy for Lindqvist be written?"),
    ("My daughter has swimming lessons on Wednesday afternoons.", "Why can't I meet midweek after lunch?"),
    (
        "The print shop in Kiel is cheaper than the one in town.",
        "Where should flyers be produced at low cost?",
    ),
    (
        "Allergic to nuts; order the vegetarian menu.",
        "What should be considered when booking a dinner for me?",
    ),
    ("The domain is registered with a provider in Iceland.", "Who hosts the web address?"),
    (
        "The tester group found the sign-up form too long.",
        "What did people complain about during the usability study?",
    ),
    ("Prefers trains over planes for trips within Europe.", "How do I usually travel to a customer abroad?"),
    (
        "The contract with Tidewater forbids naming them as a reference.",
        "May I show the Tidewater work in my portfolio?",
    ),
    ("Writes code in Python, rarely in PHP.", "Which programming language do I like best?"),
    ("The new logo was signed off on the third of November.", "Has the brand mark been approved?"),
    # German
    ("Der Stundensatz für Beratung beträgt 120 Euro.", "Was verlange ich für ein Gespräch mit Kunden?"),
    (
        "Montags bin ich wegen der Kinder erst ab elf erreichbar.",
        "Kann man mich am Wochenanfang früh anrufen?",
    ),
    ("Die Druckerei braucht die Daten drei Tage vorher.", "Wie viel Vorlauf ist für die Flyer nötig?"),
    (
        "Frau Brandt entscheidet über das Budget bei Nordlicht.",
        "Wer gibt beim Kunden Nordlicht das Geld frei?",
    ),
    (
        "Rechnungen gehen immer als PDF an die Buchhaltung.",
        "In welchem Format verschicke ich meine Forderungen?",
    ),
    ("Das Auto ist bis Ende Juni in der Werkstatt.", "Warum fahre ich zurzeit mit der Bahn?"),
    ("Newsletter werden dienstags um neun verschickt.", "Wann geht der Rundbrief raus?"),
    ("Für Schulen gilt ein Nachlass von zwanzig Prozent.", "Bekommen Bildungseinrichtungen einen Rabatt?"),
    (
        "Das Passwort für den Server liegt im Tresor der Steuerberaterin.",
        "Wo sind die Zugangsdaten hinterlegt?",
    ),
    ("Herr Okafor möchte nicht geduzt werden.", "Wie soll ich Herrn Okafor ansprechen?"),
    ("Die Mittagspause dauert von eins bis zwei.", "Wann esse ich?"),
    ("Urlaub ist über Weihnachten bis zum sechsten Januar.", "Bin ich zwischen den Jahren verfügbar?"),
    # French
    ("Les factures sont payées à trente jours.", "Combien de temps les clients ont-ils pour régler ?"),
    ("Camille relit tous les textes avant publication.", "Qui vérifie l'orthographe des articles ?"),
    (
        "Le client veut un site sans cookies ni traceurs.",
        "Quelles sont les exigences en matière de vie privée ?",
    ),
    ("Je ne travaille jamais le mercredi après-midi.", "Quel jour faut-il éviter pour un rendez-vous ?"),
    ("Le loyer du bureau augmente de cent euros en avril.", "Que va coûter en plus mon local au printemps ?"),
    ("L'imprimante est tombée en panne et doit être remplacée.", "Quel appareil faut-il racheter ?"),
    (
        "Le devis pour la librairie a été refusé, trop cher.",
        "Pourquoi n'avons-nous pas eu le projet du magasin de livres ?",
    ),
    ("Mon train pour Lyon part à sept heures douze.", "À quelle heure dois-je être à la gare ?"),
    ("La police de caractères choisie est la Garamond.", "Quelle typographie utilise-t-on ?"),
    (
        "Les réunions se font en visioconférence, jamais sur place.",
        "Faut-il se déplacer pour voir l'équipe ?",
    ),
    ("Le comptable s'appelle monsieur Ferrand.", "Qui s'occupe de mes impôts ?"),
    ("La livraison de la maquette est prévue pour le 12 mai.", "Quand le prototype sera-t-il remis ?"),
    # Italian
    ("La tariffa giornaliera è di 600 euro.", "Quanto costa un giorno del mio lavoro?"),
    ("Il cliente di Torino paga solo con bonifico.", "Come salda i conti l'azienda piemontese?"),
    ("Le foto le fa sempre Giulia.", "Chi si occupa delle immagini?"),
    ("Ad agosto lo studio è chiuso.", "Posso fissare un incontro in piena estate?"),
    (
        "Il sito deve essere pronto prima della fiera di marzo.",
        "Entro quando va messa online la nuova pagina?",
    ),
    ("Non mandare messaggi dopo le sette di sera.", "Fino a che ora si può scrivere?"),
    ("Il contratto si rinnova da solo ogni anno.", "Cosa succede all'accordo alla scadenza?"),
    ("Luca parla tedesco e traduce per noi.", "Chi ci aiuta con i clienti di Berlino?"),
    ("La vecchia stampante va regalata alla scuola.", "Che ne facciamo della macchina che non usiamo più?"),
    ("Le spese di viaggio vengono rimborsate a fine mese.", "Quando mi restituiscono i soldi del treno?"),
    ("Preferisce il tè verde al caffè.", "Che cosa offro da bere quando viene?"),
    ("Il logo non va mai messo su fondo nero.", "Quali regole ci sono per l'uso del marchio?"),
]
