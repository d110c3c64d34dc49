//! Owns what announced addresses mean from here: behind NAT, or where Sentinels announce what only containers know.

use std::collections::BTreeMap;

use crate::config::Address;

/// Announced addresses that are reached by another one.
#[derive(Clone, Debug, Default)]
pub struct AddressMap {
    reachable: BTreeMap<Address, Address>,
    announced: BTreeMap<Address, Address>,
}

impl AddressMap {
    /// Reads `announced=reachable,…`, each `host:port`.
    ///
    /// # Errors
    /// Each part that can't be used, and what is wrong with it.
    pub fn parse(list: &str) -> Result<Self, Vec<(String, String)>> {
        let mut map = Self::default();
        let mut errors = Vec::new();
        for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if let Err(reason) = map.add(part) {
                errors.push((part.to_owned(), reason));
            }
        }
        if errors.is_empty() { Ok(map) } else { Err(errors) }
    }

    fn add(&mut self, part: &str) -> Result<(), String> {
        let (announced, reachable) = part.split_once('=').ok_or("announced=reachable, each host:port")?;
        let announced: Address = announced.parse().map_err(|reason| format!("announced=reachable: {reason}"))?;
        let reachable: Address = reachable.parse().map_err(|reason| format!("announced=reachable: {reason}"))?;
        if self.reachable.contains_key(&announced) {
            return Err(format!("each announced address once, and {announced} is given twice"));
        }
        if let Some(other) = self.announced.insert(reachable.clone(), announced.clone()) {
            return Err(format!("an address of its own for each server, and {reachable} is that of {other} already"));
        }
        self.reachable.insert(announced, reachable);
        Ok(())
    }

    /// Where a server is reached that Sentinel announces as `announced`.
    pub fn reachable(&self, announced: Address) -> Address {
        self.reachable.get(&announced).cloned().unwrap_or(announced)
    }

    /// What an operator should know of a server that Sentinel announces and that never answered from here.
    pub fn out_of_reach(&self, address: &Address, reason: &str) -> String {
        let announced = self.announced.get(address).unwrap_or(address);
        let mapped = if announced == address { String::new() } else { format!(", mapped to {address}") };
        format!(
            "announced by Sentinel as {announced}{mapped}, not reachable from here ({reason}): if it has another \
             address here, give --address-map (TEXTO_ADDRESS_MAP) {announced}=host:port"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_addresses_are_reached_by_others() {
        let map = AddressMap::parse("10.0.0.1:6379=redis.example:7001, [fd00::1]:6379=[::1]:7002,").unwrap();
        let address = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(map.reachable(address("10.0.0.1:6379")), address("redis.example:7001"));
        assert_eq!(map.reachable(address("[fd00::1]:6379")), address("[::1]:7002"));
        assert_eq!(map.reachable(address("10.0.0.1:6380")), address("10.0.0.1:6380"));
        let text = map.out_of_reach(&address("redis.example:7001"), "refused");
        assert!(text.starts_with("announced by Sentinel as 10.0.0.1:6379, mapped to redis.example:7001, not reach"));
        let text = map.out_of_reach(&address("10.0.0.2:6379"), "refused");
        assert!(text.starts_with("announced by Sentinel as 10.0.0.2:6379, not reachable from here (refused)"));
    }

    #[test]
    fn every_part_that_makes_no_sense_is_named() {
        let errors = AddressMap::parse("a:1=b:1,a:1=c:1,d:1=b:1,e:1,f=g:1,h:1=i").unwrap_err();
        let parts: Vec<_> = errors.iter().map(|(part, _)| part.as_str()).collect();
        assert_eq!(parts, ["a:1=c:1", "d:1=b:1", "e:1", "f=g:1", "h:1=i"]);
        assert!(AddressMap::parse(" ").is_ok());
    }
}
