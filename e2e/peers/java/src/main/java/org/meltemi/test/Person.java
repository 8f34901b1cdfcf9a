package org.meltemi.test;

import java.io.Serializable;
import java.util.List;
import java.util.Map;

/** Nested, with a list and a map. */
public class Person implements Serializable {
    private String name;
    private int age;
    private List<String> tags;
    private Map<String, String> labels;
    private Person friend;

    public String getName() { return name; }

    public void setName(String name) { this.name = name; }

    public int getAge() { return age; }

    public void setAge(int age) { this.age = age; }

    public List<String> getTags() { return tags; }

    public void setTags(List<String> tags) { this.tags = tags; }

    public Map<String, String> getLabels() { return labels; }

    public void setLabels(Map<String, String> labels) { this.labels = labels; }

    public Person getFriend() { return friend; }

    public void setFriend(Person friend) { this.friend = friend; }
}
