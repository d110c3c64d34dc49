# Prints those lines of a Sentinel's configuration that Sentinel takes, each fact once. It refuses to start for a
# replica or a Sentinel that stands there twice, an id or an epoch that is cut off, or a master's line without its
# `monitor`; and a master that is listed as its own replica, or a Sentinel as another, must not be believed.

function host(text) { return text ~ /^[A-Za-z0-9._:-]+$/ }
function number(text) { return text ~ /^[0-9]+$/ }
function port(text) { return number(text) && text > 0 && text < 65536 }
function id(text) { return length(text) == 40 && text ~ /^[0-9a-f]+$/ }

# What the line says, or "" for one that must go. The first that says something about the same thing stays.
function fact(count, word) {
  if (word[1] !~ /^[a-z][a-z-]*$/ || count < 2) return ""
  if (word[1] != "sentinel") return "line " number_of_line
  if (count < 3) return ""
  if (word[2] == "myid") return count == 3 && id(word[3]) ? "myid" : ""
  if (word[2] == "current-epoch") return count == 3 && number(word[3]) ? "epoch" : ""
  if (word[2] ~ /^(announce|deny|resolve|sentinel)-/) return "line " number_of_line
  # All others are about a master.
  if (word[2] == "monitor") return count == 6 && host(word[4]) && port(word[5]) && number(word[6]) ? "monitor " word[3] : ""
  if (!(word[3] in master) || count < 4) return ""
  if (word[2] ~ /^(config|leader)-epoch$/) return count == 4 && number(word[4]) ? word[2] " " word[3] : ""
  if (word[2] ~ /^known-(replica|slave)$/) {
    if (count != 5 || !host(word[4]) || !port(word[5]) || master[word[3]] == word[4] " " word[5]) return ""
    return "replica " word[3] " " word[4] " " word[5]
  }
  if (word[2] == "known-sentinel") {
    return count == 6 && host(word[4]) && port(word[5]) && id(word[6]) && word[6] != self ? "sentinel " word[3] " " word[6] : ""
  }
  return "line " number_of_line
}

{ line[NR] = $0 }
$1 == "sentinel" && $2 == "monitor" && NF == 6 && host($4) && port($5) && !($3 in master) { master[$3] = $4 " " $5 }
$1 == "sentinel" && $2 == "myid" && NF == 3 && self == "" { self = $3 }
END {
  for (number_of_line = 1; number_of_line <= NR; number_of_line++) {
    if (line[number_of_line] ~ /^(#.*)?$/) {
      print line[number_of_line]
      continue
    }
    said = fact(split(line[number_of_line], words), words)
    if (said != "" && !(said in seen)) print line[number_of_line]
    seen[said]
  }
}
