"""Words of English, German, French, Italian and Spanish that tell memory about denials, wishes and topics.

All are in lower case, without combining marks of their own. A missing word makes a check stricter, never laxer.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# They say nothing of the user: a text may hold them although the user did not.
FRAME: Final = _words("""
user users freelancer speaker person called named name names always usually wants want likes like prefers prefer has
works work lives live uses use needs need asks ask says said please since today now currently new old address number
account rate price hourly day days hour hours language answer answers amounts costs email mail phone home city
nutzer nutzerin benutzer heißt name namen immer meist möchte will mag bevorzugt hat arbeitet wohnt lebt nutzt braucht
beträgt liegt lautet kostet
bittet seit heute jetzt derzeit neu neue neuer neues alt adresse nummer konto satz stundensatz preis tag tage stunde
stunden sprache antwort antworten wohnort stadt telefon
utilisateur utilisatrice appelle nom toujours veut aime préfère travaille habite vit utilise besoin demande depuis
aujourd'hui maintenant actuellement nouveau nouvelle adresse numéro compte tarif prix horaire jour jours heure heures
langue réponse réponses élève coûte courriel téléphone ville
utente chiama nome sempre vuole preferisce lavora abita vive usa bisogno chiede oggi ora adesso attualmente nuovo nuova
indirizzo numero conto tariffa prezzo oraria giorno giorni ore lingua risposta risposte telefono città casa
ammonta costa
usuario usuaria llama nombre siempre quiere gusta prefiere trabaja necesita pide desde hoy ahora actualmente nuevo
nueva dirección cuenta tarifa precio día días hora horas idioma respuesta respuestas correo teléfono ciudad
asciende cuesta
""")

DENIALS: Final = _words("""
not no never none nothing nobody neither nor without cannot
nicht nie niemals nichts niemand kein keine keinen keinem keiner keines ohne weder
pas jamais sans aucun aucune
non mai niente nulla nessun nessuno nessuna senza né
nunca jamás nada nadie ningún ninguna ninguno sin ni tampoco
""")

# Times without a number: a text about them may name the day.
RELATIVE_TIMES: Final = _words("""
tomorrow yesterday today tonight next last coming week month weekend ago
morgen übermorgen gestern heute nächste nächsten nächster nächstes kommende kommenden letzte letzten woche monat
demain hier aujourd prochain prochaine dernier dernière semaine mois
domani dopodomani ieri oggi prossimo prossima scorso scorsa settimana mese
mañana ayer hoy próximo próxima pasado pasada semana mes
""")

CALENDAR: Final = _words("""
monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays sundays
january february march april may june july august september october november december
montag dienstag mittwoch donnerstag freitag samstag sonntag januar februar märz mai juni juli oktober dezember
lundi mardi mercredi jeudi vendredi samedi dimanche janvier février mars avril juin juillet août septembre octobre
novembre décembre
lunedì martedì mercoledì giovedì venerdì sabato domenica gennaio febbraio marzo aprile maggio giugno luglio agosto
settembre ottobre dicembre
lunes martes miércoles jueves viernes sábado domingo enero febrero abril mayo junio julio septiembre octubre noviembre
diciembre
""") - _words("may mars march marzo mai")  # words of other meanings, too

# "one", "six" of some languages and other words with a second meaning are left out.
NUMBERS: Final = {
    word: number
    for number, words in {
        "2": "two zwei deux due dos",
        "3": "three drei trois tre tres",
        "4": "four vier quatre quattro cuatro",
        "5": "five fünf cinq cinque cinco",
        "6": "six sechs seis",
        "7": "seven sieben sept sette siete",
        "8": "eight huit otto ocho",
        "9": "nine neun nove nueve",
        "10": "ten zehn dix dieci diez",
        "11": "eleven elf onze undici",
        "12": "twelve zwölf douze dodici doce",
        "15": "fifteen fünfzehn quinze quindici quince",
        "20": "twenty zwanzig vingt venti veinte",
        "25": "fünfundzwanzig venticinque veinticinco",
        "30": "thirty dreißig trente trenta treinta",
        "40": "forty vierzig quarante quaranta cuarenta",
        "50": "fifty fünfzig cinquante cinquanta cincuenta",
        "60": "sixty sechzig soixante sessanta sesenta",
        "70": "seventy siebzig septante settanta setenta",
        "75": "fünfundsiebzig settantacinque",
        "80": "eighty achtzig huitante ottanta ochenta",
        "85": "fünfundachtzig ottantacinque",
        "90": "ninety neunzig nonante novanta noventa",
        "95": "fünfundneunzig novantacinque",
        "100": "hundred hundert cent cento cien",
        "1000": "thousand tausend mille mil",
    }.items()
    for word in words.split()
}

# Beginnings of verbs that ask to forget.
FORGET: Final = (
    *("forget", "delete", "remove", "erase", "drop", "scrap"),
    *("vergiss", "vergesst", "vergessen", "lösch", "entfern", "streich"),
    *("oubli", "supprim", "effac", "enlèv", "enlev", "retir"),
    *("dimentic", "cancell", "elimin", "rimuov", "togli", "scorda"),
    *("olvid", "borra", "elimin", "quita", "suprim"),
)
# Beginnings of verbs that ask to keep something in mind, or to change it.
REMEMBER: Final = (
    *("remember", "note", "keep", "change", "update", "correct", "replace", "set"),
    *("merk", "notier", "änder", "korrigier", "ersetz", "aktualisier"),
    *("souvien", "rappel", "retien", "note", "chang", "corrig", "remplac", "modif"),
    *("ricord", "annota", "segna", "cambi", "corregg", "sostitu", "aggiorn"),
    *("recuerd", "anota", "apunta", "cambi", "corrig", "corrij", "actualiz", "reemplaz"),
)
# Words that say that something has ended, without a denial.
ENDED: Final = _words("""
longer over cancelled canceled ended finished stopped quit gone obsolete outdated wrong
vorbei abgesagt beendet erledigt hinfällig falsch aufgehört
annulé annulée fini finie terminé terminée faux fausse
annullato annullata finito finita terminato terminata sbagliato sbagliata
cancelado cancelada terminado terminada acabado acabada equivocado falso
""")

# Subjects that people mean without the word: beginnings of words, by topic. Any of them names an entry about the topic.
TOPICS: Final = tuple(
    tuple(beginnings.split())
    for beginnings in (
        "name call heiß heiss nenn appel chiam llam nombre nom nome prénom spitzname",
        "home live living mov address city town wohn adress umzug umgezogen gezogen habit ville adresse déménag abit"
        " indirizzo casa città trasfer viv dirección ciudad mud",
        "rate price charge bill cost fee hour stundensatz satz preis honorar berechne koste verlang tarif prix factur"
        " prend tariffa prezzo chied fattur cobr precio tarifa hora",
        "mail e-mail email courriel correo",
        "phone number call mobile telefon handy nummer téléphone numéro portable telefono cellulare numero teléfono"
        " móvil número",
        "language write answer reply speak sprache schreib antwort deutsch langue écri répon lingua scriv rispon idioma"
        " escrib respond",
        "account iban bank konto compte banque conto banca cuenta banco",
        "job work profession company beruf arbeit firma métier travail entreprise lavor mestier azienda trabaj empresa"
        " oficio",
    )
)
